# `thumbnet serve` with an exported model, without torch: see "In a container" in docs/serving.md.
#
#   docker build --tag thumbnet-serve .
#
# SIGHUP makes it load the model again: see "Replacing the model" there.
#
# A tag can move. Build what you publish from a digest: docs/serving.md has the command that prints it.
ARG BASE=python:3.13-slim-trixie

# hadolint ignore=DL3006
FROM ${BASE} AS build
WORKDIR /opt/src
# Every file that is installed must have a hash that the locks name.
COPY locks/build.txt locks/serve.txt locks/
RUN python -m pip install --no-cache-dir --require-hashes --no-deps --only-binary :all: --requirement locks/build.txt
RUN python -m venv --without-pip /opt/thumbnet
RUN python -m pip --python /opt/thumbnet/bin/python install --no-cache-dir --require-hashes --no-deps --only-binary :all: --requirement locks/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /opt/wheel .
RUN python -m pip --python /opt/thumbnet/bin/python install --no-cache-dir --no-index --no-deps --find-links /opt/wheel thumbnet

# hadolint ignore=DL3006
FROM ${BASE} AS serve
# Nothing installs packages here any more.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/site-packages/pip*
COPY --from=build /opt/thumbnet /opt/thumbnet
# Requests are never written to the disk. /tmp is for Python and the model's libraries: the rest of the file
# system can be read-only.
ENV HOME=/tmp \
    THUMBNET_CACHE=/tmp/thumbnet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
# Python itself gets SIGTERM, and finishes the requests that it has accepted.
STOPSIGNAL SIGTERM
# Not urllib.request, which would ask the proxy that http_proxy names.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/opt/thumbnet/bin/python", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8000, timeout=3); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/thumbnet/bin/thumbnet", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model.onnx"]
