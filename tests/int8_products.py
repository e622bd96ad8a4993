"""The products of 8-bit integers that give right numbers on the processor at hand."""

from __future__ import annotations

import math

import torch
from tdb_server.domain.model_info import KernelOutcome
from tdb_server.engine.quantized_scores import Int8Product, onednn_int8_product, plain_int8_product
from tdb_server.engine.ranking_trial import try_product

RIGHT_PRODUCTS: list[Int8Product] = [plain_int8_product]
if try_product(torch.empty(4096, 64), math.inf, onednn_int8_product) is KernelOutcome.CHOSEN:
    RIGHT_PRODUCTS.append(onednn_int8_product)
