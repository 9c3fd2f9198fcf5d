"""The hall: modules that the scripts share. Each script also has its own package here, a room named after it."""
