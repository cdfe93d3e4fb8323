# Two images from one build:
#   docker build --target drop-in    -t ztunnel:drop-in .      in place of Istio's ztunnel: its CNI writes the rules
#   docker build --target standalone -t ztunnel:standalone .   installs its own rules, so it brings iptables and nftables
# Both run with a read-only root file system; nothing in them can be written by a user who is not root.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The agent's environment, without pip: it is copied as it is. Wheels only, so no compiler is needed anywhere.
RUN python -m venv --without-pip /opt/ztunnel && python -m venv /opt/build
COPY requirements.lock requirements-build.lock ./
RUN pip --python /opt/ztunnel/bin/python install --require-hashes --only-binary :all: -r requirements.lock \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY ztunnel ztunnel
COPY iptables iptables
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/ztunnel/bin/python install --no-deps --no-index /dist/*.whl

FROM python:3.11-slim-bookworm AS runtime
LABEL org.opencontainers.image.title="ztunnel" \
      org.opencontainers.image.description="Node-level transparent proxy: captures pod connections, carries them in mTLS HBONE" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/ztunnel /opt/ztunnel
RUN ln -s /opt/ztunnel/bin/ztunnel /usr/local/bin/ztunnel \
    && pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && rm -rf /usr/local/lib/python3.11/ensurepip
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# outbound, inbound plain, inbound HBONE, metrics, readiness, DNS; the admin port 15000 is on loopback only
EXPOSE 15001 15006 15008 15020 15021 15053/tcp 15053/udp
ENTRYPOINT ["ztunnel"]
CMD ["proxy", "ztunnel"]

FROM runtime AS standalone
RUN apt-get update \
    && apt-get install -y --no-install-recommends iptables nftables iproute2 conntrack \
    && rm -rf /var/lib/apt/lists/*
# Also where the base image leaves it open (/tmp and the like); mount a tmpfs where something must write.
RUN find / -xdev ! -type l -perm /022 -exec chmod go-w {} +

FROM runtime AS drop-in
RUN find / -xdev ! -type l -perm /022 -exec chmod go-w {} +
