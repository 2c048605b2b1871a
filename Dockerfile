# Dependencies only; the code is mounted from where it is being edited (slurm/run.sh):
#   docker build -t vla-lego .
#   VLA_IMAGE=vla-lego bash slurm/run.sh python train.py config/debug.py
FROM python:3.12-slim
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        git libegl1 libgl1 libgl1-mesa-dri libopengl0 && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /requirements.txt
RUN pip install --no-cache-dir -r /requirements.txt
# graphics: rendering without a display needs more of the driver than compute does
ENV NVIDIA_DRIVER_CAPABILITIES=all PYTHONDONTWRITEBYTECODE=1
