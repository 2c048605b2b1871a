"""Whether a folder holds a checkpoint of ours, said without torch."""

import json
import os
from typing import Any


def read_meta(folder: str) -> dict[str, Any] | None:
    """meta.json of a checkpoint that train.py has written; None where there is no such checkpoint.

    Other programs write a meta.json, too: ours names the sizes of the network under 'model', as
    model.VLA.save puts them there.
    """
    path = f'{folder}/meta.json'
    if not os.path.exists(path):
        return None
    with open(path, encoding='utf-8') as f:
        try:
            meta = json.load(f)
        except ValueError:  # somebody else's: ours is put in place whole
            return None
    if not isinstance(meta, dict) or not isinstance(meta.get('model'), dict):
        return None
    return meta if 'action_start_id' in meta['model'] else None
