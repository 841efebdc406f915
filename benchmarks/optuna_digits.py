"""What a user would write today: Optuna + a plain PyTorch loop on scikit-learn's digits.

usage: optuna_digits.py {dataloader|tensor} TRIALS EPOCHS STORAGE [PROCESSES] [SEED]
Prints: trials, epochs actually trained, wall seconds, epochs per second, best validation accuracy.
"""
import sys, time, os, warnings
warnings.simplefilter("ignore")
import optuna, torch
from torch import nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
optuna.logging.set_verbosity(optuna.logging.ERROR)
MODE, TRIALS, EPOCHS, STORAGE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
PROCS = int(sys.argv[5]) if len(sys.argv) > 5 else 1
SEED = int(sys.argv[6]) if len(sys.argv) > 6 else 0
STORAGE = None if STORAGE == "memory" else STORAGE
X, y = load_digits(return_X_y=True)
X = torch.tensor(X / 16.0, dtype=torch.float32); y = torch.tensor(y)
tr, va = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=y)
Xt, yt, Xv, yv = X[tr], y[tr], X[va], y[va]
ACT = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}

def objective(trial):
    h = trial.suggest_categorical("width", [32, 64])
    act = ACT[trial.suggest_categorical("activation", list(ACT))]
    p = trial.suggest_float("dropout", 0.0, 0.5)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    wd = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    B = trial.suggest_categorical("batch_size", [32, 64])
    name = trial.suggest_categorical("optimizer", ["sgd", "momentum", "rmsprop", "adam"])
    torch.manual_seed(1_000_003 * SEED + trial.number)
    m = nn.Sequential(nn.Linear(64, h), act(), nn.Dropout(p), nn.Linear(h, h), act(), nn.Linear(h, 10))
    opt = {"sgd": lambda: torch.optim.SGD(m.parameters(), lr=lr, weight_decay=wd),
           "momentum": lambda: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, weight_decay=wd),
           "rmsprop": lambda: torch.optim.RMSprop(m.parameters(), lr=lr, weight_decay=wd),
           "adam": lambda: torch.optim.Adam(m.parameters(), lr=lr, weight_decay=wd)}[name]()
    if MODE == "dataloader":
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(Xt, yt), batch_size=B, shuffle=True)
        batches = lambda: loader
    else:
        batches = lambda: ((Xt[i], yt[i]) for i in torch.randperm(len(yt)).split(B))
    for epoch in range(EPOCHS):
        m.train()
        for xb, yb in batches():
            loss = nn.functional.cross_entropy(m(xb), yb)
            opt.zero_grad(); loss.backward(); opt.step()
        m.eval()
        with torch.no_grad():
            acc = (m(Xv).argmax(1) == yv).float().mean().item()
        trial.report(acc, epoch)
        if PRUNE and trial.should_prune():
            raise optuna.TrialPruned()
    return acc

PRUNE = os.environ.get("PRUNE", "0") == "1"
def worker(n, seed):
    torch.set_num_threads(1 if PROCS > 1 else 2)
    s = optuna.load_study(study_name="s", storage=STORAGE, sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.SuccessiveHalvingPruner())
    s.optimize(objective, n_trials=n)

if __name__ == "__main__":
    t = time.perf_counter()
    if STORAGE and STORAGE.startswith("sqlite:///") and os.path.exists(STORAGE[10:]): os.remove(STORAGE[10:])
    if PROCS == 1:
        torch.set_num_threads(1)
        study = optuna.create_study(study_name="s", storage=STORAGE, direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED), pruner=optuna.pruners.SuccessiveHalvingPruner())
        study.optimize(objective, n_trials=TRIALS)
    else:
        import multiprocessing as mp
        study = optuna.create_study(study_name="s", storage=STORAGE, direction="maximize")
        ps = [mp.get_context("spawn").Process(target=worker, args=(TRIALS // PROCS, PROCS * SEED + k)) for k in range(PROCS)]
        [p.start() for p in ps]; [p.join() for p in ps]
    d = time.perf_counter() - t
    ep = sum(len(x.intermediate_values) for x in study.trials)
    print(f"{MODE} procs={PROCS} prune={PRUNE} trials={len(study.trials)} epochs={ep} wall={d:.1f}s epochs/s={ep/d:.1f} best={study.best_value:.4f}")
