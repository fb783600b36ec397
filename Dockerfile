# CPU: docker build --tag calor-hf .
# GPU: docker build --tag calor-hf:gpu --build-arg PIP_EXTRA_INDEX_URL= .
ARG PYTHON=3.12.11-slim-bookworm
FROM python:${PYTHON}

# pip prefers the CPU build of torch from here; empty, it takes the CUDA build of the package index.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG EXTRAS=peft,onnx,robustness,diffusers

WORKDIR /app
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY calor_hf calor_hf
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home calor \
    && mkdir /data \
    && chown calor /data

# The folder of the user is mounted at /data; any user may write caches below it.
ENV HF_HOME=/data/.cache/huggingface MPLCONFIGDIR=/tmp/matplotlib
USER calor
WORKDIR /data
ENTRYPOINT ["calor-hf"]
CMD ["--help"]
