"""Apache Kafka and PostgreSQL as processes of this machine, from Python packages and jars: no Docker, no Java."""
