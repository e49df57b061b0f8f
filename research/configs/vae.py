"""A variational autoencoder of binary images: divergence and reconstruction are metrics of layers.

As it stands: scikit-learn's digits with two latent dimensions, so that the picture of the latent space is the whole of it. On MNIST the
model of arXiv:1509.00519 (table 1: 86.76 nats), with 75 epochs in each stage of the learning rate, where the paper has 1, 3, 9, ... 2,187:

    python scripts/train.py --config=vae --config.dataset=mnist --config.latent=50 --config.batch_size=100 --config.epochs=600
        --config.stages.first=75 --workdir=runs/vae

In TensorBoard: `latent/kl` rises while `reconstruction/nats` falls (their sum is `loss`); under Images, reconstructions (pairs: image, its
reconstruction), samples, and where the test images lie in the latent space.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "vae"
    config.dataset = "digits"  # digits, mnist, fashion_mnist
    config.latent = 2  # dimensions of z
    config.hidden = (200, 200)  # units of the tanh layers of the encoder; the decoder has them in reverse
    config.batch_size = 20
    config.epochs = 100
    config.patience = 0  # epochs without a better val_loss until training stops; 0: never
    config.stages = ml_collections.ConfigDict()  # the learning rate falls in eight stages, of first * growth^i epochs
    config.stages.first = 12  # 1 in the paper
    config.stages.growth = 1  # 3 in the paper
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001  # of the first stage; a tenth of it in the last
    config.optimizer.epsilon = 1e-4
    config.likelihood = ml_collections.ConfigDict()
    config.likelihood.samples = 5_000  # of z, for each test image
    config.likelihood.chunk = 50  # samples that are decoded at a time; samples is a multiple of it
    config.likelihood.batch_size = 20  # images that are estimated at a time
    config.likelihood.compile = "graph"
    return config
