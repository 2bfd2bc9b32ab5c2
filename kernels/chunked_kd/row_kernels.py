"""One Triton program for one row of logits, all terms together; it leaves their gradient there.

A program goes through its row for the sums of exponentials at each temperature, once for all losses
and what their gradients have in common, and once for the gradient.
"""
# mypy: disable-error-code="assignment, no-redef, no-untyped-def, untyped-decorator, var-annotated"

import triton
import triton.language as tl


# The row's largest logit at a temperature, and the sum of exp(z / T - largest); -inf adds 0.
@triton.jit
def sum_exponentials(z_ptr, vocab_size, T: tl.constexpr, COLUMNS: tl.constexpr):
    largest, mass = -1e30, 0.0
    for first in range(0, vocab_size, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        z = tl.load(z_ptr + column, mask=column < vocab_size, other=-float("inf")) / T
        before = largest
        largest = tl.maximum(largest, tl.max(z, axis=0))
        mass = mass * tl.exp(before - largest) + tl.sum(tl.exp(z - largest), axis=0)
    return largest, mass


# What is summed up to one term's loss, and p X of its gradient p X - p sum(p X) with respect to z,
# or 0 for forward_kl; the factor T^2 (T) is in both, less d(z / T) / dz = 1 / T in the latter.
@triton.jit
def compare(log_p, log_q, KIND: tl.constexpr, T: tl.constexpr, BETA, FLOOR: tl.constexpr):
    p, q = tl.exp(log_p), tl.exp(log_q)
    curved = tl.zeros_like(p)
    if KIND == 0:  # reverse_kl
        curved = p * (log_p - log_q) * T
        value = curved * T
    elif KIND == 1:  # jsd
        log_m = tl.maximum(tl.log(BETA * q + (1 - BETA) * p), FLOOR)
        curved = (1 - BETA) * p * (log_p - log_m) * T
        value = BETA * q * (log_q - log_m) * (T * T) + curved * T
    elif KIND == 2:  # total_variation
        difference = p - q
        sign = tl.where(difference > 0, 0.5, tl.where(difference < 0, -0.5, 0.0))
        curved = sign * p
        value = sign * difference * T
    else:  # forward_kl
        value = q * (log_q - log_p) * (T * T)
    return value, curved


# One row against a teacher's logits, or none:
#     gradient = sum over T of  straight p - pulled q + curved - p sum(curved)
#                - weight of cross-entropies at the label + weight 2 (z - v) / V of logit_mse
@triton.jit
def dense_kernel(
    z_ptr,
    v_ptr,
    labels_ptr,
    values_ptr,
    num_rows,
    vocab_size,
    KINDS: tl.constexpr,
    GROUPS: tl.constexpr,
    BETAS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TEMPERATURES: tl.constexpr,
    STRAIGHT: tl.constexpr,
    PULLED: tl.constexpr,
    AT_LABEL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FLOOR: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * vocab_size
    if v_ptr is not None:
        v_ptr += row * vocab_size
    label = tl.load(labels_ptr + row)
    z_label = tl.load(z_ptr + label)

    z_logs, v_logs, sums, bends = (), (), (), ()
    for group in tl.static_range(len(TEMPERATURES)):
        largest, mass = sum_exponentials(z_ptr, vocab_size, TEMPERATURES[group], COLUMNS)
        z_logs += (largest + tl.log(mass),)
        if v_ptr is not None:
            largest, mass = sum_exponentials(v_ptr, vocab_size, TEMPERATURES[group], COLUMNS)
            v_logs += (largest + tl.log(mass),)
        bends += (0.0,)
    for _index in tl.static_range(len(KINDS)):
        sums += (0.0,)

    if v_ptr is not None:
        for first in range(0, vocab_size, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < vocab_size
            z = tl.load(z_ptr + column, mask=inside, other=0.0)
            v = tl.load(v_ptr + column, mask=inside, other=0.0)
            new_sums, new_bends = (), ()
            for index in tl.static_range(len(KINDS)):
                part = tl.zeros((COLUMNS,), tl.float32)
                if KINDS[index] == 5:  # logit_mse
                    part = (z - v) * (z - v) / vocab_size
                elif KINDS[index] != 4:
                    log_p = z / TEMPERATURES[GROUPS[index]] - z_logs[GROUPS[index]]
                    log_q = v / TEMPERATURES[GROUPS[index]] - v_logs[GROUPS[index]]
                    part, curved = compare(
                        log_p, log_q, KINDS[index], TEMPERATURES[GROUPS[index]], BETAS[index], FLOOR
                    )
                part = tl.where(inside, part, 0.0)
                new_sums += (sums[index] + tl.sum(part, axis=0),)
            for group in tl.static_range(len(TEMPERATURES)):
                log_p = z / TEMPERATURES[group] - z_logs[group]
                log_q = v / TEMPERATURES[group] - v_logs[group]
                bend = bends[group]
                for index in tl.static_range(len(KINDS)):
                    if GROUPS[index] == group and KINDS[index] < 3:
                        part, curved = compare(
                            log_p, log_q, KINDS[index], TEMPERATURES[group], BETAS[index], FLOOR
                        )
                        curved = tl.where(inside, curved, 0.0)
                        bend += WEIGHTS[index] * tl.sum(curved, axis=0)
                new_bends += (bend,)
            sums, bends = new_sums, new_bends
    for index in tl.static_range(len(KINDS)):
        value = sums[index]
        if KINDS[index] == 4:  # cross_entropy
            value = z_logs[GROUPS[index]] - z_label
        tl.store(values_ptr + index * num_rows + row, value)

    if WITH_GRADIENT:
        for first in range(0, vocab_size, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < vocab_size
            z = tl.load(z_ptr + column, mask=inside, other=0.0)
            gradient = tl.where(column == label, -AT_LABEL, 0.0)
            if v_ptr is not None:
                v = tl.load(v_ptr + column, mask=inside, other=0.0)
            for group in tl.static_range(len(TEMPERATURES)):
                log_p = z / TEMPERATURES[group] - z_logs[group]
                gradient += tl.exp(log_p) * (STRAIGHT[group] - bends[group])
                if v_ptr is not None:
                    log_q = v / TEMPERATURES[group] - v_logs[group]
                    gradient -= tl.exp(log_q) * PULLED[group]
                    for index in tl.static_range(len(KINDS)):
                        if GROUPS[index] == group and KINDS[index] < 3:
                            part, curved = compare(
                                log_p, log_q, KINDS[index], TEMPERATURES[group], BETAS[index], FLOOR
                            )
                            gradient += WEIGHTS[index] * curved
                        if GROUPS[index] == group and KINDS[index] == 5:
                            gradient += WEIGHTS[index] * 2 * (z - v) / vocab_size
            if SOFTCAP > 0:
                gradient *= 1 - (z / SOFTCAP) * (z / SOFTCAP)
            tl.store(z_ptr + column, gradient, mask=inside)


# One row against a few stored tokens and one bucket of the rest. The stored are taken out of
# the row first, so that what remains in it is the bucket; its gradient is
#     (dL/ds of the bucket) exp(z / T) / sum of exp(z / T) over the bucket
@triton.jit
def stored_kernel(
    z_ptr,
    ids_ptr,
    log_q_ptr,
    labels_ptr,
    values_ptr,
    num_rows,
    vocab_size,
    num_stored,
    KINDS: tl.constexpr,
    GROUPS: tl.constexpr,
    BETAS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TEMPERATURES: tl.constexpr,
    STRAIGHT: tl.constexpr,
    PULLED: tl.constexpr,
    AT_LABEL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FLOOR: tl.constexpr,
    BUCKETS: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * vocab_size
    label = tl.load(labels_ptr + row)
    z_label = tl.load(z_ptr + label)
    bucket = tl.arange(0, BUCKETS)
    ids = tl.load(ids_ptr + row * num_stored + bucket, mask=bucket < num_stored, other=-1)
    ids = ids.to(tl.int64)
    is_stored = ids >= 0
    z_stored = tl.load(z_ptr + ids, mask=is_stored, other=-float("inf"))
    tl.debug_barrier()
    tl.store(z_ptr + ids, tl.full((BUCKETS,), -float("inf"), tl.float32), mask=is_stored)
    tl.debug_barrier()

    gradient_stored = tl.where(is_stored & (ids == label), -AT_LABEL, 0.0)
    largests, factors = (), ()
    for group in tl.static_range(len(TEMPERATURES)):
        largest, mass = sum_exponentials(z_ptr, vocab_size, TEMPERATURES[group], COLUMNS)
        mass = tl.maximum(mass, 1.1754943508222875e-38)  # all tokens may be stored
        logits = tl.where(is_stored, z_stored / TEMPERATURES[group], -float("inf"))
        logits = tl.where(bucket == num_stored, largest + tl.log(mass), logits)
        most = tl.max(logits, axis=0)
        log_sum = most + tl.log(tl.sum(tl.exp(logits - most), axis=0))
        log_p = tl.maximum(logits - log_sum, FLOOR)
        at = log_q_ptr + (group * num_rows + row) * (num_stored + 1) + bucket
        log_q = tl.load(at, mask=bucket <= num_stored, other=FLOOR)
        p = tl.exp(log_p)
        curved = tl.zeros_like(p)
        for index in tl.static_range(len(KINDS)):
            if GROUPS[index] == group:
                if KINDS[index] == 4:  # cross_entropy
                    value = log_sum - z_label
                else:
                    part, bend = compare(
                        log_p, log_q, KINDS[index], TEMPERATURES[group], BETAS[index], FLOOR
                    )
                    value = tl.sum(part, axis=0)
                    curved += WEIGHTS[index] * bend
                tl.store(values_ptr + index * num_rows + row, value)
        by_bucket = p * (STRAIGHT[group] - tl.sum(curved, axis=0)) + curved
        by_bucket -= tl.exp(log_q) * PULLED[group]
        gradient_stored += by_bucket
        tail = tl.sum(tl.where(bucket == num_stored, by_bucket, 0.0), axis=0)
        largests += (largest,)
        factors += (tail / mass,)

    if WITH_GRADIENT:
        for first in range(0, vocab_size, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < vocab_size
            z = tl.load(z_ptr + column, mask=inside, other=0.0)
            gradient = tl.where(column == label, -AT_LABEL, 0.0)
            for group in tl.static_range(len(TEMPERATURES)):
                share = tl.exp(z / TEMPERATURES[group] - largests[group])
                gradient += share * factors[group]
            if SOFTCAP > 0:
                z = tl.maximum(z, -SOFTCAP)  # where it was taken out
                gradient *= 1 - (z / SOFTCAP) * (z / SOFTCAP)
            tl.store(z_ptr + column, gradient, mask=inside)
        tl.debug_barrier()
        if SOFTCAP > 0:
            z_stored = tl.maximum(z_stored, -SOFTCAP)
            gradient_stored *= 1 - (z_stored / SOFTCAP) * (z_stored / SOFTCAP)
        tl.store(z_ptr + ids, gradient_stored, mask=is_stored)
