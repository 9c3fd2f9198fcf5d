# The three scripts in one image; docker-compose.yml says which of them a container runs.
FROM python:3.13.11-slim-trixie

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

# First what rarely changes. All of it comes as wheels, so there is nothing to compile and nothing to clean up.
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY .streamlit/ .streamlit/
COPY sql/ sql/
COPY pipeline/ pipeline/
COPY producer.py consumer.py dashboard.py ./

RUN useradd --create-home --uid 10001 trades
USER trades

CMD ["python", "consumer.py"]
