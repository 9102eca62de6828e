# The image of workers, dashboard and one-shot commands:
#
#   docker build -t hpo .
#
# PyTorch is then what pip's own index has: with CUDA. --build-arg TORCH_INDEX=… adds another index, such as that of the
# CPU builds, which take a fraction of the space; docker-compose.yml gives one.

FROM python:3.12.11-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG TORCH_INDEX=""
WORKDIR /src
RUN python -m venv /opt/hpo
ENV PATH=/opt/hpo/bin:$PATH
COPY constraints.txt ./
# by far the largest layer, so it comes before anything that changes often
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint constraints.txt \
    torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY hpo hpo
RUN pip install --no-cache-dir --constraint constraints.txt ".[s3,gs]"

FROM python:3.12.11-slim-bookworm
RUN useradd --uid 10001 --create-home hpo \
    && install --directory --owner hpo --group hpo /work /data /artifacts
COPY --from=build /opt/hpo /opt/hpo
ENV PATH=/opt/hpo/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HPO_DATA_ROOT=/data \
    HPO_ARTIFACTS=/artifacts \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /work
ENTRYPOINT ["hpo"]
CMD ["--help"]
