"""Stands in for apex's compiled kernels, on a CPU: Adam on lists of tensors, in the order of operations of apex's kernel."""


def multi_tensor_adam(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, eps, step, mode, bias_correction, weight_decay):
    assert mode == 0, "adam_w_mode=False is the Adam of the papers"
    correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1, 1)
    for g, p, m, v in zip(*tensor_lists, strict=True):
        g = g + weight_decay * p
        m.copy_(beta1 * m + (1 - beta1) * g)
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        p.sub_(lr * ((m / correction1) / ((v / correction2).sqrt() + eps)))
