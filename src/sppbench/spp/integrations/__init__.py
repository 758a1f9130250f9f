"""The recorder in other people's loops. Each needs the extra of its name: ``pip install sppbench[transformers]``.

**transformers.** ``Trainer(..., callbacks=[SPPTrainerCallback()])`` records every optimizer step of a ``Trainer``.

**accelerate.** The ``Recorder`` of ``sppbench.spp`` is all that is needed. Make it after ``prepare``, give it the
accelerator's scaler, and end a step where the gradients of an accumulated batch are complete; ``save_state`` and
``load_state`` keep it in the checkpoint::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with Recorder(model, "run", scaler=accelerator.scaler) as recorder:
        accelerator.register_for_checkpointing(recorder)
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(criterion(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                recorder.step()
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
