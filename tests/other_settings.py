"""Another valid value for every setting that a policy has, `carry` apart."""

OTHER_SETTINGS = {
    "stop_token": "exclude",
    "gamma": 7,
    "eta": 0.7,
    "delta": 3,
    "gamma_min": 2,
    "gamma_max": 4,
    "full": "drafted",
    "clip_expand": "gamma_max",
    "ignore_cut": True,
    "tau": 0.7,
    "threshold": 0.7,
}
