"""Submissions that cheat, break or attack: what stands in the cell of the first task of the tiny homework."""
WRONG = "def double(x):\n    return 3 * x\n"
MARK = "54321.5"  # seconds that processes sleep which should not be left

CODE = {
    # never ends, or takes all
    "loops at the top": "while True: pass",
    "loops in the call": "def double(x):\n    while True: pass",
    "loops and ignores the alarm": "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
    "swallows every exception": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleeps": "import time\ntime.sleep(54321.5)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory bomb": "kept = []\nwhile True: kept.append(bytearray(b'x' * 10**8))",
    "memory bomb of many": "import os, time\nfor _ in range(5): os.fork()\nkept = bytearray(b'x' * 10**8)\ntime.sleep(54321.5)",
    "memory in the shared folder": "for n in range(10**6): open(f'/dev/shm/{n}', 'wb').write(b'x' * 10**7)",
    "prints for ever": "while True: print('x' * 1000)",
    "floods every pipe": "import os\nwhile True:\n    for n in range(1, 20):\n        try: os.write(n, b'x' * 10**5)\n"
                         "        except OSError: pass",
    "huge file": "with open('huge', 'wb') as file:\n    while True: file.write(b'x' * 10**8)",
    "many files": "n = 0\nwhile True:\n    n += 1\n    open(f'file{n}', 'wb').write(b'x' * 10**7)",
    "recursion": "def double(x):\n    return double(x)",
    # destroys
    "deletes its folder": WRONG + "import shutil, os\nfor name in (os.getcwd(), '/tmp', '/course', '/usr/bin'): shutil.rmtree(name, ignore_errors=True)",
    "overwrites the course": WRONG + "import densegen, pathlib\nfor p in pathlib.Path(densegen.__file__).parent.rglob('*.py'):\n"
                             "    try: p.write_text('')\n    except OSError: pass",
    "closes every file": WRONG + "import os\nos.closerange(0, 100)",
    "sys.exit": WRONG + "import sys\nsys.exit(0)",
    "exits in the call": "import sys\ndef double(x):\n    sys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "kills its parent": WRONG + "import os\nos.kill(os.getppid(), 9)",
    "kills everything": WRONG + "import os\nos.kill(-1, 9)",
    "kills the first process": WRONG + "import os\nos.kill(1, 9)",
    "kills the grader": WRONG + "import os\nfor pid in (GRADER, GRADER_PARENT):\n    try: os.kill(pid, 9)\n    except OSError: pass",
    "ptrace": WRONG + "import ctypes, os\nlibc = ctypes.CDLL(None)\nprint(libc.ptrace(16, 1, 0, 0), libc.ptrace(16, os.getppid(), 0, 0))",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    # reads what it must not
    "reads every file": WRONG + "import os\nfor place, inner, names in os.walk('/'):\n"
                        "    inner[:] = [n for n in inner if n not in ('usr', 'proc', 'sys', 'lib', 'bin', 'share')]\n    for name in names:\n"
                        "        try: print(open(os.path.join(place, name)).read()[:5000])\n        except (OSError, ValueError): pass",
    "reads by name": WRONG + "for name in FILES:\n    try: print(open(name).read())\n    except OSError as error: print(error)",
    "links and reads": WRONG + "import os\nfor n, name in enumerate(FILES):\n    os.symlink(name, f'soft{n}')\n"
                       "    try: os.link(name, f'hard{n}')\n    except OSError: pass\n    try: print(open(f'soft{n}').read())\n"
                       "    except OSError: pass",
    "environment": WRONG + "import os, glob\nprint(dict(os.environ))\nfor name in glob.glob('/proc/*/environ'):\n"
                   "    try: print(open(name, 'rb').read())\n    except OSError: pass",
    "looks into memory": "import gc\nimport numpy as np\ndef double(x):\n    found = [o for o in gc.get_objects() if isinstance(o, np.ndarray)\n"
                         "        and o.shape == x.shape and o is not x]\n    return found[-1] if found else x",
    "looks up the stack": "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame.f_back: frame = frame.f_back\n"
                          "    print(frame.f_locals, frame.f_globals)\n    return frame.f_locals.get('expected', x)",
    "network": WRONG + "import socket\nfor host in ('1.1.1.1', '127.0.0.1', 'example.org'):\n    for port in (53, 80, PORT):\n"
               "        try:\n            socket.create_connection((host, port), 0.5)\n            print('connected-to-a-host')\n"
               "        except OSError: pass",
    "unix sockets": WRONG + "import socket, os\nfor place, _, names in os.walk('/run'): print('socket', names)\n"
                    "for name in (SOCKET, chr(0) + 'densegen-abstract'):\n    try:\n"
                    "        socket.socket(socket.AF_UNIX).connect(name)\n        print('connected-to-a-host')\n    except OSError: pass",
    # pretends
    "patches builtins": "import builtins\nbuiltins.abs = builtins.all = builtins.isinstance = lambda *_: True\n" + WRONG,
    "patches numpy": "import numpy as np, numpy.testing\nnp.isclose = np.allclose = np.array_equal = lambda *_, **__: np.ones(1, bool)\n"
                     "numpy.testing.assert_allclose = lambda *_, **__: None\n" + WRONG,
    "patches the checks": "import densegen.course.homework as h\nh.difference = lambda *_: None\nh.Check.wrong = lambda *_: None\n"
                          "h.agrees = h.accepts = lambda *_, **__: None\n" + WRONG,
    "patches assert": "import ast\nclass AssertionError(Exception): pass\nimport builtins\nbuiltins.AssertionError = AssertionError\n" + WRONG,
    "patches json": "import json\njson.dumps = lambda *_, **__: '[[{\"value\": 0}, {\"value\": 0}, {\"value\": 0}]]'\n" + WRONG,
    "patches encode": "import densegen.course.student as s\ns.encode = lambda value: {'array': {'dtype': 'float64', 'shape': [10**12], 'data': ''}}\n" + WRONG,
    "patches answers": "import densegen.course.student as s\ns.answers = lambda *_: '{\"points\": 100}'\n" + WRONG,
    "forges lines": WRONG + "import json, os\nfor n in range(3, 20):\n    for cell in range(20):\n        for line in ({'cell': cell, 'answers': "
                    "'[[{\"value\": 1}, {\"value\": 1}, {\"value\": 1}]]'}, {'cell': cell, 'points': 100}, {'tiny-double-check': 2}):\n"
                    "            try: os.write(n, (json.dumps(line) + chr(10)).encode())\n            except OSError: pass",
    "forges results": WRONG + "import json, pathlib\nfor name in ('result.json', 'claims.json', 'grades.csv', '/tmp/result.json'):\n"
                      "    pathlib.Path(name).write_text(json.dumps({'student': 'x', 'points': {'tiny-double-check': 2}, 'wrong': {}}))",
    "forges display": WRONG + "print('tiny-double: public check passed')\nprint({'points': 100})",
    "patches the clock": "import time\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\ntry: time.clock_settime(0, 0)\n"
                         "except OSError: pass\n" + WRONG,
    "sitecustomize": "import pathlib, subprocess, sys\npathlib.Path('sitecustomize.py').write_text('import os; os._exit(0)')\n"
                     "subprocess.run([sys.executable, '-c', 'pass'])\n" + WRONG,
    "a module like the grader's": "import pathlib, sys\nfor name in ('densegen/course/homework.py', 'json.py', 'numpy.py', 'densegen/__init__.py'):\n"
                                  "    path = pathlib.Path(name)\n    path.parent.mkdir(parents=True, exist_ok=True)\n"
                                  "    path.write_text('agrees = accepts = lambda *_, **__: None')\n"
                                  "sys.path.insert(0, '.')\nfor name in [n for n in sys.modules if n.startswith('densegen')]: del sys.modules[name]\n" + WRONG,
    # answers with something else
    "another name": "def doubled(x):\n    return 2 * x",
    "no function": "double = 2",
    "wrong shape": "def double(x):\n    return (2 * x)[:, None]",
    "one number": "def double(x):\n    return float((2 * x).sum())",
    "integers": "def double(x):\n    return (2 * x).astype(int)",
    "texts": "def double(x):\n    return (2 * x).astype(str)",
    "as a text": "def double(x):\n    return str(2 * x)",
    "objects": "import numpy as np\ndef double(x):\n    return np.array([Exception()] * len(x))",
    "NaN": "def double(x):\n    return x * float('nan')",
    "NaN and infinity for a judge": WRONG + "def spread(x):\n    return x * float('nan')",
    "its input": "def double(x):\n    return x",
    "changes its input": "def double(x):\n    x *= 0\n    return x",
    "nothing": "def double(x):\n    pass",
    "NotImplemented": "def double(x):\n    return NotImplemented",
    "lying __eq__": "class Same:\n    shape = (3,)\n    def __eq__(self, other): return True\ndef double(x):\n    return Same()",
    "lying __array__": "class Same:\n    def __array__(self, *_, **__): return self\n    def __len__(self): return 3\ndef double(x):\n    return Same()",
    "lying array": "import numpy as np\nclass Same(np.ndarray):\n    def __eq__(self, other): return True\n    def tobytes(self): return b''\n"
                   "    def astype(self, *_, **__): return self\ndef double(x):\n    return x.view(Same)",
    "lazy": "def double(x):\n    return (2 * v for v in x)",
    "a function": "def double(x):\n    return lambda: 2 * x",
    "a pickle": "import os, pickle\nclass Bomb:\n    def __reduce__(self): return os.system, ('sleep 54321.5',)\n"
                "def double(x):\n    return pickle.dumps(Bomb())",
    "an object that unpickles": "import os\nclass Bomb:\n    def __reduce__(self): return os.system, ('sleep 54321.5',)\ndef double(x):\n    return Bomb()",
    "ten million numbers": "import numpy as np\ndef double(x):\n    return np.zeros(10**7)",
    "many numbers for a judge": WRONG + "import numpy as np\ndef spread(x):\n    return np.zeros((8, 10**5))",
    "tuples without end": "def double(x):\n    found = []\n    found.append(found)\n    return found",
    "deep tuples": "def double(x):\n    for _ in range(10**4): x = (x,)\n    return x",
    "a long integer": "def double(x):\n    return 10**10000",
    "an error with a terrible text": "class Terrible(Exception):\n    def __str__(self): raise self\ndef double(x):\n    raise Terrible",
    "an error with escapes": "def double(x):\n    raise ValueError('\\x1b[2J</pre><script>alert(1)</script>\\udcff')",
    # outlives the cell
    "a thread that stays": WRONG + "import threading, time\nthreading.Thread(target=time.sleep, args=(54321.5,)).start()",
    "a process that stays": WRONG + "import subprocess\nsubprocess.Popen(['sleep', '54321.5'], start_new_session=True)",
    "a daemon": WRONG + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.closerange(0, 100)\n"
                "        os.environ.clear()\n        os.execv('/usr/bin/sleep', ['sleep', '54321.5'])\n    os._exit(0)",
    "a thread that answers": WRONG + "import threading\ndef later():\n    while True: globals()['double'] = lambda x: x\n"
                             "threading.Thread(target=later, daemon=True).start()",
}
