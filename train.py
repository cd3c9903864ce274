"""Train a network and certify its robustness.

python train.py
python train.py activation=smooth model.width=1024
python train.py experiment=mnist_1.58
python train.py -m activation=relu,maxmin,smooth capacity=tiny,small dataset=digits
python train.py resume=outputs/<run>
"""

from robustcert.main import train

if __name__ == "__main__":
    train()
