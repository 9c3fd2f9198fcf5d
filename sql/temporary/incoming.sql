-- Where a batch that repeats stored trades waits to be merged into `trades`. One per connection, emptied by
-- every commit. Spelled out rather than LIKE trades, which would need the right to read `trades`.
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    trade_id  VARCHAR COLLATE "C",
    ticker    VARCHAR(10),
    price     NUMERIC(10,2),
    volume    INTEGER,
    side      VARCHAR(10),
    timestamp TIMESTAMP
) ON COMMIT DELETE ROWS;
