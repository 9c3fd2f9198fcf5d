// The status line. The ages keep counting between ticks, so that they are right even when a tick is late, and once the
// ticks stay away, the word says so. A paused page stands still and shows the times instead.

export default function ({ data, parentElement }) {
  const line = parentElement.querySelector(".status");
  const word = line.querySelector("[role=status]");
  line.querySelector(".facts").textContent = data.facts;
  const places = line.querySelectorAll(".age");
  const start = performance.now(), began = Date.now();
  const show = () => {
    // The first clock stands still while the computer sleeps; the second may be set back.
    const passed = data.moving ? Math.max(performance.now() - start, Date.now() - began) / 1000 : 0;
    data.ages.forEach(({ name, age, time, old_after }, index) => {
      const known = data.moving && age !== null;
      const old = known && age + passed > old_after;
      places[index].textContent = `${old ? "⚠ " : ""}${name} ${known ? ago(age + passed) : time}`;
      places[index].classList.toggle("old", old);
    });
    const state = passed > data.ages[1].old_after ? "NO ANSWER" : data.word; // three intervals without a tick
    line.dataset.state = state;
    if (word.textContent !== state) word.textContent = state; // so that a screen reader announces only changes
  };
  clearInterval(line.counting);
  show();
  if (data.moving) line.counting = setInterval(show, 500);
  return () => clearInterval(line.counting);
}

function ago(seconds) {
  if (seconds < -1) return `${duration(-seconds)} ahead of this clock`;
  return `${duration(Math.max(0, seconds))} ago`;
}

// Like `duration` in wording.py, but it rounds down from 10 s on, and below that always shows tenths.
function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}
