-- Holds a batch that repeats stored trades until it is merged into `trades`. One per connection, emptied by
-- every commit. The columns are spelled out because LIKE trades would need the right to read `trades`.
CREATE TEMPORARY TABLE IF NOT EXISTS incoming (
    trade_id  VARCHAR COLLATE "C",
    ticker    VARCHAR(10),
    price     NUMERIC(10,2),
    volume    INTEGER,
    side      VARCHAR(10),
    timestamp TIMESTAMP
) ON COMMIT DELETE ROWS;
