# The command avdvae on a CPU:
#   docker build -t avdvae . && docker run --rm -v "$PWD:/work" avdvae enhance noisy.wav clean.wav
# --build-arg EXTRAS=train,metrics,video for trainings, too; --build-arg PIP_OPTIONS= for an index with torch's build for CPUs.
FROM python:3.11
ARG EXTRAS=video
ARG PIP_OPTIONS=
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libegl1 libgles2 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY avdvae ./avdvae
COPY configs ./configs
RUN pip install --no-cache-dir $PIP_OPTIONS -c constraints.txt ".[$EXTRAS]"
WORKDIR /work
ENTRYPOINT ["avdvae"]
CMD ["--help"]
