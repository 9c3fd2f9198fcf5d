"""What the three scripts share: the trade, the settings, the market, the way to Kafka and PostgreSQL."""
