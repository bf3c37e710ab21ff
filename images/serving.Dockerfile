# The streaming server and the predictor, on CPUs: no torch.
# docker build -f images/serving.Dockerfile .
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY images images
COPY voiceflow voiceflow
COPY components components
COPY pipelines pipelines
COPY serving serving
RUN images/install.sh serving /opt/voiceflow

FROM python:3.11.11-slim-bookworm
COPY --from=build /opt/voiceflow /opt/voiceflow
COPY images/prepare.sh /tmp/prepare.sh
RUN /tmp/prepare.sh serving && rm /tmp/prepare.sh
ENV PATH=/opt/voiceflow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 VOICEFLOW_HOST=::
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 8081
CMD ["python", "-m", "serving.transformer", "--model", "pretrained"]
