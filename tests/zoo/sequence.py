"""Networks on sequences."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entry import CLASSES, Entry, series, text, tokens

VOCABULARY, LENGTH = 11, 6


class RecurrentClassifier(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.rnn = kind(4, 5, num_layers=2, dropout=dropout, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.rnn(self.embed(ids))
        return self.fc(out.mean(1))  # type: ignore[no-any-return]


class CharModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCABULARY, 4), nn.GRU(4, 6, batch_first=True)
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.rnn(self.embed(ids))
        return self.head(out).transpose(1, 2)  # type: ignore[no-any-return]


class PositionalEncoding(nn.Module):
    def __init__(self, width: int, dropout: float, max_len: int = 16) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p=dropout)
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        pe = torch.zeros(1, max_len, width)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[:, : x.size(1)])  # type: ignore[no-any-return, index]


class TransformerClassifier(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY, 6), PositionalEncoding(6, dropout)
        layer = nn.TransformerEncoderLayer(6, 2, dim_feedforward=8, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.position(self.embed(ids) * math.sqrt(6))
        return self.head(self.encoder(x, src_key_padding_mask=ids == 0).mean(1))  # type: ignore[no-any-return]


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.n_head = heads
        self.register_buffer("bias", torch.tril(torch.ones(LENGTH, LENGTH)).view(1, 1, LENGTH, LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k, q, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (k, q, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))  # type: ignore[index]
        y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))  # type: ignore[no-any-return]


class FlashSelfAttention(CausalSelfAttention):
    """The same with torch's own attention."""

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k, q, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (k, q, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Weights of the token table and of the output layer are one tensor."""

    def __init__(self, dropout: float, attention: type[CausalSelfAttention]) -> None:
        super().__init__()
        width = 8
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(width),
                    "attn": attention(width, 2, dropout),
                    "ln_2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(
                        nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(dropout)
                    ),
                }
            )
            for _ in range(2)
        )
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.2)

    def forward(self, ids: Tensor) -> Tensor:
        pos = torch.arange(0, ids.size(1), dtype=torch.long, device=ids.device)
        x = self.drop(self.wte(ids) + self.wpe(pos))
        for block in self.h:
            x = x + block["attn"](block["ln_1"](x))  # type: ignore[index]
            x = x + block["mlp"](block["ln_2"](x))  # type: ignore[index]
        return self.lm_head(self.ln_f(x))  # type: ignore[no-any-return]


def next_token(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    ids, targets = batch
    logits = model(ids)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))


class TextCNN(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 4)
        self.convs = nn.ModuleList([nn.Conv1d(4, 3, k) for k in (2, 3, 4)])
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(9, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).transpose(1, 2)
        x = torch.cat([F.relu(conv(x)).max(dim=2).values for conv in self.convs], 1)
        return self.fc(self.dropout(x))  # type: ignore[no-any-return]


class TemporalBlock(nn.Module):
    """Causal convolution: what the padding adds at the end is cut off."""

    def __init__(self, inside: int, outside: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(inside, outside, 3, padding=self.cut, dilation=dilation)
        )
        self.skip = nn.Conv1d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)[:, :, : -self.cut] + self.skip(x))


def tcn(trial: Any) -> nn.Module:
    return nn.Sequential(TemporalBlock(2, 3, 1), TemporalBlock(3, 3, 2), nn.Flatten(), nn.Linear(24, CLASSES))


SEQUENCE: tuple[Entry, ...] = (
    Entry("LSTM classifier", lambda t: RecurrentClassifier(nn.LSTM, 0.0), tokens()),
    Entry("GRU classifier with dropout", lambda t: RecurrentClassifier(nn.GRU, 0.2), tokens()),
    Entry("character language model", lambda t: CharModel(), text()),
    Entry("transformer encoder", lambda t: TransformerClassifier(0.0), tokens()),
    Entry("transformer encoder with dropout", lambda t: TransformerClassifier(0.1), tokens()),
    Entry("GPT", lambda t: GPT(t.suggest_float("dropout", 0.0, 0.3), CausalSelfAttention), text(), lambda: next_token),
    Entry("GPT with torch's attention", lambda t: GPT(0.1, FlashSelfAttention), text(), lambda: next_token),
    Entry("TextCNN", lambda t: TextCNN(t.suggest_float("dropout", 0.0, 0.5)), tokens()),
    Entry("temporal convolutions, weight norm", tcn, series()),
)
