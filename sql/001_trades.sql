-- The table every trade ends in. Idempotent: running it again changes nothing.
CREATE TABLE IF NOT EXISTS trades (
    -- "C": bytes are compared as bytes, so the index of version-7 UUIDs grows at its right edge only.
    trade_id  VARCHAR COLLATE "C" PRIMARY KEY,
    ticker    VARCHAR(10),
    price     NUMERIC(10,2),
    volume    INTEGER,
    side      VARCHAR(10),
    timestamp TIMESTAMP  -- UTC
);
