"""Apache Kafka and PostgreSQL as local processes, from Python packages and jars: no Docker, no installed Java."""
