# The three scripts in one image; docker-compose.yml says which one each container runs.
FROM python:3.13.11-slim-trixie

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app

# What rarely changes comes first. Every package comes as a wheel, so there is nothing to compile or clean up.
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY .streamlit/ .streamlit/
COPY sql/ sql/
COPY pipeline/ pipeline/
COPY producer.py consumer.py dashboard.py ./

# Whatever the umask under which the project was cloned.
RUN useradd --create-home --uid 10001 trades && chmod -R a+rX /app
USER trades

CMD ["python", "consumer.py"]
