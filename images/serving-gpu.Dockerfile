# The predictor on T4s: onnxruntime-gpu with its own CUDA and cuDNN; the node brings the driver.
# docker build -f images/serving-gpu.Dockerfile .
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY images images
COPY voiceflow voiceflow
COPY components components
COPY pipelines pipelines
COPY serving serving
RUN images/install.sh serving-gpu /opt/voiceflow

FROM python:3.11.11-slim-bookworm
COPY --from=build /opt/voiceflow /opt/voiceflow
COPY images/prepare.sh /tmp/prepare.sh
RUN /tmp/prepare.sh serving-gpu && rm /tmp/prepare.sh
ENV PATH=/opt/voiceflow/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 VOICEFLOW_HOST=::
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
EXPOSE 8080 8081
CMD ["python", "-m", "serving.predictor", "--provider", "cuda"]
