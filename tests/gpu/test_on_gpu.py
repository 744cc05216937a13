"Contracts on a real GPU; skipped where there is none."
import pytest
import torch

from densegen.flows.coupling import RealNVP
from densegen.workbench.training import fit

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
if torch.cuda.is_available():
    from probes import PROBES, run
else:
    PROBES, run = {"probes": None}, None


@cuda
@pytest.mark.parametrize("name", PROBES)
def test_everything_stays_on_the_gpu_and_agrees_with_the_cpu(name):
    torch.backends.cudnn.allow_tf32 = False
    run(name, torch.device("cuda"))


@cuda
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_fit_trains_on_the_gpu_and_resumes_there(home, tmp_path):
    def trained(steps, checkpoint=None):
        torch.manual_seed(0)
        flow = RealNVP(2, layers=4, width=32, dropout=0.1).to(home)
        history = fit(flow, 2 + torch.randn(4096, 2), steps=steps, lr=3e-3, ema=0.9, checkpoint=checkpoint)
        return flow, history

    torch.cuda.reset_peak_memory_stats()
    whole, history = trained(60)
    assert torch.cuda.max_memory_allocated() > 0 and history.loss[-1] < history.loss[0]
    trained(25, tmp_path / "flow.ckpt")
    resumed, _ = trained(60, tmp_path / "flow.ckpt")
    for a, b in zip(whole.parameters(), resumed.parameters()):
        assert a.device.type == home
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
