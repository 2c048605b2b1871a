# Dependencies only; the code is mounted from where it is being edited:
#   docker build -t vla-lego .
#   docker run --gpus=all --ipc=host --rm -it -v "$PWD":/code vla-lego python train.py config/debug.py
FROM python:3.12-slim
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        git libegl1 libgl1 libgl1-mesa-dri libopengl0 && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /requirements.txt
RUN pip install --no-cache-dir -r /requirements.txt
# graphics: rendering without a display needs more of the driver than compute does
ENV NVIDIA_DRIVER_CAPABILITIES=all PYTHONDONTWRITEBYTECODE=1
WORKDIR /code
