import numpy as np
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.inference.requests import Request
from tests.support.exported_models import exported
def test_x(exported):
    s=Scorer(exported/'first')
    r={"user": {"history": None, "hour": 29651428, "city": None, "actions": None, "income": -1.6118490512468732e+283, "age": 1600}, "candidates": [{"tags": [4], "item": None}]}
    e=s.encode([Request(r["user"],r["candidates"])])
    print(e['income'])
    print(s.run(e))
    try: print(s.run(e,["pctr","pcvr","pcvr"]))
    except Exception as x: print(type(x),x)
    for v in (-3.4e38,-1e37,-1e36,-1e30,-1e20,1e38):
        e['income'][:]=v; print(v,s.run(e,["pctr","pcvr","pctcvr","history.virtual"])['pctr'],s.run(e))
    assert 0
