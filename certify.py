"""Certify a trained network: sound radii for every sample of a split.

python certify.py outputs/<run>
python certify.py outputs/<run> radii=[0.3,1.58]
python certify.py outputs/<run> split=validation samples=1000
python certify.py outputs/<run> dataset.root=/data/mnist
python certify.py network=model.onnx dataset=mnist
"""

from robustcert.main import certify

if __name__ == "__main__":
    certify()
