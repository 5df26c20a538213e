"""Create a run from published weights, those of the DVAE benchmark, of DVAE_SE and of MixDVAE.

avdvae import source=DVAE_SE/trained_models/wsj_rvae run_dir=runs/wsj_rvae
avdvae import source=MixDVAE/models/pretrained_dvae_models/model_scass_wsj.pt run_dir=runs/mixdvae_wsj

VAE, DKF, STORN, VRNN, SRNN, RVAE and DSAE, with the benchmark's layers for speech. Of MixDVAE, the SRNNs of speech
(model_scass_wsj.pt), of a flute (model_scass_cbf.pt) and of boxes to track (model_mot.pt). Nothing in these files is
executed.

The run can be used like one of avdvae train, except with resume=; its configuration has the training settings of
this suite, not those the weights were trained with. corpus=flute names that of its evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdvae.errors import UserError
from avdvae.orchestration.importing import import_weights
from avdvae.programs.program import Program


def checked(config: Mapping[str, Any]) -> None:
    if missing := [f"{name}=" for name in ("source", "run_dir") if config[name] is None]:
        raise UserError(f"{' '.join(missing)} missing: give source=FOLDER run_dir=RUN")
    import_weights(Path(str(config["source"])), Path(str(config["run_dir"])), config["corpus"])


main = Program("import_weights", checked)

if __name__ == "__main__":
    main()
