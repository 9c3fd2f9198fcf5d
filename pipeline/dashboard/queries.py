"""Every query of the dashboard. Each walks the index on timestamp, however large the table is.

Trades dated more than a minute ahead of the database's clock are counted, but left out until their time has come.
Candles leave out any that are ahead: the newest trade in them decides how late the others may arrive.
Trades in years that Python cannot represent are left out for good.
"""

from sqlalchemy import text

from pipeline.trade import COLUMNS, MAX_PRICE

WINDOW = 200  # trades
CHUNK = 40_000  # trades per step when reading back through the table

NOW = "CAST(now() AT TIME ZONE 'UTC' AS timestamp)"
HORIZON = f"{NOW} + interval '1 minute'"
BEGINNING = "timestamp '0001-01-01'"

# What the consumer would not have stored is not a trade; a table that others write to may hold such rows. A NULL makes
# these comparisons fail, too. PostgreSQL takes NaN for greater than every number.
VALID = f"""trade.ticker <> '' AND trade.side IN ('buy', 'sell') AND trade.volume > 0
    AND trade.price BETWEEN 0.01 AND {MAX_PRICE}"""

# One row per trade, newest first; a single row without a trade when there is none. While the table has no statistics,
# PostgreSQL would read all of it if any further condition came before the limit, or if the trades ahead were counted in
# no order.
LATEST_TRADES = text(
    f"""SELECT {", ".join(COLUMNS)}, pg_is_in_recovery() AS standby,
        (SELECT count(*) FROM (
            SELECT FROM trades WHERE timestamp > {HORIZON} ORDER BY timestamp DESC LIMIT {WINDOW}
        ) AS ahead) AS ahead
    FROM (VALUES (1)) AS always LEFT JOIN (
        SELECT {", ".join(COLUMNS)} FROM trades WHERE timestamp <= {HORIZON}
        ORDER BY timestamp DESC, trade_id DESC LIMIT {WINDOW}
    ) AS trade ON trade.timestamp >= {BEGINNING} AND {VALID} ORDER BY timestamp DESC, trade_id DESC"""
)

NEWEST = text(
    f"""SELECT max(timestamp)
    FROM (SELECT * FROM trades WHERE timestamp <= {NOW} ORDER BY timestamp DESC LIMIT {WINDOW}) AS trade
    WHERE timestamp >= {BEGINNING} AND {VALID}"""
)

# For the last 40,000 trades before `end`: the time of the oldest, the end of the last pause over an hour, their number.
STRETCH = text(
    f"""SELECT min(timestamp), max(later) FILTER (WHERE later - timestamp > interval '1 hour'), count(*)
    FROM (
        SELECT timestamp, lag(timestamp, 1, CAST(:end AS timestamp)) OVER (ORDER BY timestamp DESC) AS later
        FROM trades WHERE timestamp >= {BEGINNING} AND timestamp < :end ORDER BY timestamp DESC LIMIT {CHUNK}
    ) AS chunk"""
)

# The trades from `start` up to, but not including, `end`, one row per ticker and step. The opening and closing prices
# are looked up separately: ordering each group would cost a second sort of all its trades.
CANDLES = text(
    f"""SELECT ticker, start,
        (SELECT price FROM trades AS trade WHERE trade.timestamp = first AND trade.ticker = candle.ticker AND {VALID}
         ORDER BY trade_id LIMIT 1) AS open,
        high, low,
        (SELECT price FROM trades AS trade WHERE trade.timestamp = last AND trade.ticker = candle.ticker AND {VALID}
         ORDER BY trade_id DESC LIMIT 1) AS close,
        volume, notional, trades
    FROM (
        SELECT ticker, date_bin(:step, timestamp, timestamp '1970-01-01') AS start,
            min(timestamp) AS first, max(timestamp) AS last, max(price) AS high, min(price) AS low,
            sum(volume) AS volume, sum(price * volume) AS notional, count(*) AS trades
        FROM trades AS trade WHERE timestamp >= :start AND timestamp < least(:end, {NOW}) AND {VALID}
        GROUP BY 1, 2
    ) AS candle ORDER BY start"""
)
