"""The hall: what the scripts share. Each script has a room of its own in here, named after it."""
