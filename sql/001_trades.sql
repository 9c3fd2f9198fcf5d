-- The table that holds every trade. Idempotent: running it again changes nothing.
CREATE TABLE IF NOT EXISTS trades (
    -- "C" compares text byte by byte, so the index of version-7 UUIDs grows only at its right edge.
    trade_id  VARCHAR COLLATE "C" PRIMARY KEY,
    ticker    VARCHAR(10),
    price     NUMERIC(10,2),
    volume    INTEGER,
    side      VARCHAR(10),
    timestamp TIMESTAMP  -- UTC
);
