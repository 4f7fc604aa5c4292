# qfdata and qftrain in an image of their own.
#
#   docker build -t qformer .                              CPU, some 1 GB
#   docker build -t qformer:cuda --build-arg QF_CUDA=1 .   CUDA, some 4 GB; run it with --gpus all
#   docker run --rm -v "$PWD:/data" qformer qfdata shard photos --out shards/photos
#
# --build-arg QF_COMMIT="$(git describe --always --dirty)" puts the commit into `--version`.
FROM rust:1.89.0-slim-bookworm AS build
# Versions are Debian's: a pinned one is gone from the archive after the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake nasm python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG QF_CUDA=0
ARG QF_COMMIT=unknown
# The programs record where libtorch is, so it has the same place in both stages. Of it they need the
# libraries alone.
ENV QF_CACHE=/opt/qformer QF_NO_APT=1 QF_DEPS_CACHE=0 RUSTUP_TOOLCHAIN=1.89.0
RUN make install PREFIX=/usr/local
# Relative paths: Debian's cp (coreutils 9.1) fails on `--parents` with absolute ones.
WORKDIR /
RUN mkdir /out \
    && cp -a --parents usr/local/bin/qfdata usr/local/bin/qftrain usr/local/libexec/qformer \
        opt/qformer/libtorch-*/site/torch/lib opt/qformer/libtorch-*/site/torch/version.py \
        opt/qformer/libtorch-*/site/nvidia /out \
    && find /out -type d -name include -prune -exec rm -rf {} +

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home qformer
COPY --from=build /out /
USER 1000
WORKDIR /data
CMD ["qftrain"]
