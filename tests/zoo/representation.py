"""Networks that learn from inputs alone, or from pairs: autoencoders, contrastive and metric learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import Batch, Entry, floats, inputs_only, whole


class VAE(nn.Module):
    def __init__(self, latent: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.mu, self.logvar = nn.Linear(5, latent), nn.Linear(5, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 5), nn.ReLU(), nn.Linear(5, 6))

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return mu + eps * std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        return self.decoder(self.reparameterize(mu, logvar)), mu, logvar


class ELBO:
    """Reconstruction and divergence, weighted by beta."""

    def __init__(self, beta: float = 0.5) -> None:
        self.beta = beta

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        out, mu, logvar = model(batch[0])
        divergence = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
        total: Tensor = F.mse_loss(out, batch[0]) + self.beta * divergence
        return total


class DenoisingAutoencoder(nn.Module):
    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + self.noise * torch.randn_like(x)
        return self.net(x)  # type: ignore[no-any-return]


def reconstruction(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[0])


class SparseAutoencoder(nn.Module):
    """Keeps the three largest of eight hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.encoder(x))
        threshold = z.topk(3, dim=1).values[:, -1:]
        return self.decoder(torch.where(z >= threshold, z, torch.zeros_like(z)))  # type: ignore[no-any-return]


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


class SimCLR:
    """NT-Xent of two noisy views of each sample."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        views = torch.cat([x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)])
        z = F.normalize(model(views), dim=1)
        scores = z @ z.t() / self.temperature
        n = x.shape[0]
        scores = scores.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=x.device), float("-inf"))
        target = torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(x.device)
        return F.cross_entropy(scores, target)


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    a, b, same = batch
    distance = F.pairwise_distance(model(a), model(b))
    near, far = same * distance.pow(2), (1 - same) * F.relu(1.0 - distance).pow(2)
    return (near + far).mean()


def triplet(model: nn.Module, batch: Batch) -> Tensor:
    anchor, positive, negative = (model(x) for x in batch)
    return F.triplet_margin_loss(anchor, positive, negative, margin=0.5)


class VectorQuantized(nn.Module):
    """A codebook with straight-through gradients, followed by an exponential moving average."""

    def __init__(self, codes: int = 5) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)
        self.register_buffer("codebook", torch.randn(codes, 3))
        self.register_buffer("usage", torch.ones(codes))
        self.codebook: Tensor
        self.usage: Tensor

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        nearest = torch.cdist(z, self.codebook).argmin(1)
        if self.training:
            hot = F.one_hot(nearest, self.codebook.shape[0]).to(z.dtype)
            with torch.no_grad():
                self.usage.mul_(0.9).add_(hot.sum(0), alpha=0.1)
                self.codebook = 0.9 * self.codebook + 0.1 * (hot.t() @ z) / self.usage[:, None]
        quantized = self.codebook[nearest]
        return self.decoder(z + (quantized - z).detach())  # type: ignore[no-any-return]


def _pairs() -> Batch:
    return floats(6), floats(6, seed=2), whole(2, seed=3).to(torch.get_default_dtype())


def _triplets() -> Batch:
    return floats(6), floats(6, seed=2), floats(6, seed=3)


def _noisy(trial: Any) -> nn.Module:
    return DenoisingAutoencoder(trial.suggest_float("noise", 0.05, 0.5))


REPRESENTATION: tuple[Entry, ...] = (
    Entry("VAE", lambda t: VAE(), inputs_only(6), ELBO),
    Entry("denoising autoencoder", _noisy, inputs_only(6), lambda: reconstruction),
    Entry("sparse autoencoder", lambda t: SparseAutoencoder(), inputs_only(6), lambda: reconstruction),
    Entry("SimCLR", lambda t: encoder(), inputs_only(6), lambda: SimCLR(0.5)),
    Entry(
        "siamese network",
        lambda t: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        _pairs,
        lambda: contrastive,
    ),
    Entry(
        "triplet network",
        lambda t: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        _triplets,
        lambda: triplet,
    ),
    Entry("vector-quantised autoencoder", lambda t: VectorQuantized(), inputs_only(6), lambda: reconstruction),
)
