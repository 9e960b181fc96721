# rinalmo on a CPU:  docker build -t rinalmo .  &&  docker run --rm -v "$PWD:/work" rinalmo embed sequences.fa -o out.npz
#
# Two stages: the first builds the wheel and an environment, the second takes the environment alone, without pip's caches,
# compilers or the sources.

FROM python:3.12-slim AS build
WORKDIR /source
RUN python -m venv /opt/rinalmo
COPY constraints.txt ./
# The CPU build of torch by itself: the package index would give one with CUDA, several gigabytes.
RUN /opt/rinalmo/bin/pip install --no-cache-dir --no-compile -c constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
# What compiles C++ against torch is left behind, and pip itself.
RUN /opt/rinalmo/bin/pip install --no-cache-dir --no-compile -c constraints.txt . \
    && rm -rf /opt/rinalmo/lib/python3.12/site-packages/torch/include \
    && /opt/rinalmo/bin/pip uninstall --yes pip

FROM python:3.12-slim
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin rinalmo \
    && mkdir /work && chown rinalmo /work
COPY --from=build /opt/rinalmo /opt/rinalmo
# The caches are where any user may write, for `docker run --user`.
ENV PATH=/opt/rinalmo/bin:$PATH RINALMO_HOME=/tmp/rinalmo HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib
# As a number, so that a cluster that allows no root can see that it is none.
USER 1000
WORKDIR /work
ENTRYPOINT ["rinalmo"]
CMD ["--help"]
