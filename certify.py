"""Certify a trained network: sound radii for every sample of a split.

python certify.py checkpoint=outputs/<run>/checkpoints/best.ckpt
python certify.py checkpoint=outputs/<run>/checkpoints/best.ckpt radii=[0.3,1.58]
python certify.py checkpoint=outputs/<run>/checkpoints/best.ckpt split=validation samples=1000
python certify.py checkpoint=outputs/<run>/checkpoints/best.ckpt dataset.root=/data/mnist
"""

from robustcert.runs.commands import certify

if __name__ == "__main__":
    certify()
