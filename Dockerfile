# Two stages: a locked build, then a small image that runs as nobody in particular (uid 65532).
#
# io_uring needs two things from `docker run`, see docs/operations.md:
#   --security-opt seccomp=tuning/seccomp.json   Docker's default profile refuses the io_uring calls
#   --ulimit memlock=-1                          the executors pin their I/O buffers
FROM rust:1.95.0-bookworm AS rust
# The toolchain of the image. By rust-toolchain.toml alone rustup would download rustfmt and clippy with every build.
ENV RUSTUP_TOOLCHAIN=1.95.0

FROM rust AS build
WORKDIR /src
COPY . .
ARG REVISION=unknown
RUN MILLRACE_COMMIT=$REVISION cargo build --locked --profile dist --features top && mkdir /state

# The bill of materials (CycloneDX) of a release, what is linked into the binary on x86-64 and on arm64:
#   docker build --target sbom --output sbom .
FROM rust AS bill
WORKDIR /src
RUN cargo install --locked --version 0.5.9 cargo-cyclonedx
COPY . .
RUN for target in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu; do \
        cargo cyclonedx --features top --format json --spec-version 1.5 --describe binaries --no-build-deps \
            --target "$target" --target-in-filename || exit 1; \
    done && mkdir /bill && mv millrace*.cdx.json /bill/
FROM scratch AS sbom
COPY --from=bill /bill /

FROM gcr.io/distroless/cc-debian12:nonroot
# docker build --build-arg REVISION=$(git rev-parse HEAD) --build-arg CREATED=$(date -u +%FT%TZ) -t millrace .
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="millrace" \
      org.opencontainers.image.description="Thread-per-core ingest server: JSON over HTTP in, every payload to S3 or what speaks its protocol" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY --from=build /src/target/dist/millrace /usr/local/bin/millrace
COPY --from=build --chown=65532:65532 /state /var/lib/millrace
WORKDIR /var/lib/millrace
VOLUME /var/lib/millrace
# Inside a container the loopback address reaches nobody.
ENV MILLRACE_ADMIN_LISTEN=0.0.0.0:9090
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# It asks /healthz of MILLRACE_ADMIN_LISTEN, as there is no shell and no curl here. Not /readyz: a server whose store is down
# holds payloads and is not to be killed for that.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 \
    CMD ["/usr/local/bin/millrace", "health"]
ENTRYPOINT ["/usr/local/bin/millrace"]
