# Pipeline steps, the registry's server and the commands of CI.
# docker build -f images/pipelines.Dockerfile .
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY images images
COPY voiceflow voiceflow
COPY components components
COPY pipelines pipelines
COPY serving serving
RUN images/install.sh pipelines /opt/voiceflow

FROM python:3.11.11-slim-bookworm
COPY --from=build /opt/voiceflow /opt/voiceflow
COPY images/prepare.sh /tmp/prepare.sh
RUN /tmp/prepare.sh pipelines && rm /tmp/prepare.sh
ENV PATH=/opt/voiceflow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
# Models that steps make say which code made them: docker build --build-arg COMMIT=$(git rev-parse --short=12 HEAD)
ARG COMMIT=unknown
ENV VOICEFLOW_GIT_COMMIT=$COMMIT
USER 10001:10001
WORKDIR /tmp
CMD ["voiceflow", "--help"]
