"""FusedAdam with the habits of apex's: `step` is one int for a parameter group, each call counts it up, and `zero_grad` takes no argument."""

import amp_C
import torch


class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay))
        self.adam_w_mode = int(adam_w_mode)

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            lists = [], [], [], []
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p.data).float(), torch.zeros_like(p.data).float()
                for tensors, tensor in zip(lists, (p.grad.data, p.data, state["exp_avg"], state["exp_avg_sq"])):
                    tensors.append(tensor)
            amp_C.multi_tensor_adam(2048 * 32, None, lists, group["lr"], *group["betas"], group["eps"], group["step"], self.adam_w_mode,
                                    int(group["bias_correction"]), group["weight_decay"])
