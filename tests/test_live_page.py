"""The live page over HTTP: what it answers, whom it refuses, what it reads."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.parse

import helpers
import pytest

from rlzero import report
from rlzero.monitoring import alerts, history
from rlzero.reporting import (
  charts,
  live_page,
  live_run,
  metric_names,
  recorded,
)
from rlzero.runtime import config, files

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m"\''
TOKEN = 'a-token-that-nobody-guesses'


def request(port, path, **headers):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
  headers = {name.replace('_', '-'): value for name, value in headers.items()}
  connection.request('GET', path, headers=headers)
  answer = connection.getresponse()
  body = answer.read()
  connection.close()
  return answer, body


def ask(port, path, **query):
  text = urllib.parse.urlencode(query)
  answer, body = request(port, f'/api/{path}?{text}')
  return answer.status, json.loads(body)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  made = tmp_path_factory.mktemp('run') / 'watched'
  return helpers.write_watched_run(made, hostile=HOSTILE)


@pytest.fixture(scope='module')
def port(folder):
  runs = [live_run.LiveRun(str(folder)), live_run.LiveRun(str(folder), 36.0)]
  with helpers.serve_app(live_page.app(runs)) as found:
    yield found


@pytest.fixture(scope='module')
def guarded(folder):
  app = live_page.app([live_run.LiveRun(str(folder))], TOKEN)
  with helpers.serve_app(app) as found:
    yield found


@pytest.mark.parametrize(
  'path', ['/', '/static/page.js', '/api/overview', '/api/x', '/static/x']
)
def test_every_answer_has_the_headers_that_hold_a_page_in(port, path):
  answer, _ = request(port, path)
  policy = answer.headers['Content-Security-Policy']
  assert "default-src 'none'" in policy and "script-src 'self'" in policy
  assert 'unsafe' not in policy and '*' not in policy
  assert answer.headers['X-Content-Type-Options'] == 'nosniff'


def test_the_page_asks_for_nothing_from_elsewhere(port):
  _, page = request(port, '/')
  found = re.findall(r'(?:src|href)="([^"#]+)"', page.decode())
  assert set(found) == {
    *('static/icon.svg', 'static/style.css', 'static/page.js')
  }
  for name in live_page.FILES:
    answer, body = request(port, f'/static/{name}')
    assert answer.status == 200 and len(body) < 40_000
    text = body.decode().replace('http://www.w3.org/2000/svg', '')
    assert '://' not in text
    # What a model wrote is never parsed, and no style is set inline.
    for way in ('innerHTML', 'insertAdjacent', 'outerHTML', 'document.write'):
      assert way not in text
    assert 'eval(' not in text and 'style=' not in text


def test_modules_that_are_imported_are_served():
  folder = pathlib.Path(live_page.__file__).parent / 'static'
  assert {path.name for path in folder.iterdir()} == set(live_page.FILES)
  for name, body in live_page.STATIC.items():
    for found in re.findall(rb"from '\./(\w+\.js)'", body):
      assert found.decode() in live_page.FILES, name


def test_a_hostile_completion_is_json_and_nothing_else(port):
  status, found = ask(
    port, 'runs/0/group', key='completions/step_000010', group=1
  )
  assert status == 200 and len(found['completions']) == 4
  assert HOSTILE in found['question']
  first = found['completions'][0]
  thought = ''.join(text for _, text in first['thought'])
  assert HOSTILE in thought
  assert ['word', 'wait'] in first['thought']
  assert first['numbers']['reward'] == 2.0 and first['right']
  path = '/api/runs/0/group?key=completions/step_000010&group=1'
  answer, body = request(port, path)
  assert answer.headers['Content-Type'] == 'application/json'
  assert b'\x1b' not in body


@pytest.mark.parametrize(
  'path, status',
  [
    ('/static/../live_page.py', 404),
    ('/static/%2e%2e%2flive_page.py', 404),
    ('/static/..%2f..%2freport.py', 404),
    ('/api/runs/0/group?key=../../etc/passwd&group=0', 404),
    ('/api/runs/0/step?key=completions/../config', 404),
    ('/api/runs/0/step?key=%2Fetc%2Fpasswd', 404),
    ('/api/runs/0/group?key=completions/step_000000&group=9', 404),
    ('/api/runs/0/group?key=completions/step_000000&group=-1', 404),
    ('/api/runs/0/group?key=completions/step_000000&group=x', 400),
    ('/api/runs/0/search?min_reward=nan0', 400),
    ('/api/runs/0/state?since=1.5', 400),
    ('/api/runs/2/state', 404),
    ('/api/runs/-1/state', 404),
    ('/api/runs/0/state.json', 404),
    ('/metrics.jsonl', 404),
  ],
)
def test_what_is_not_there_is_a_sentence(port, path, status):
  answer, body = request(port, path)
  assert answer.status == status
  assert set(json.loads(body)) == {'error'} and b'root:' not in body


def test_a_state_has_all_and_then_only_what_is_new(tmp_path):
  run = live_run.LiveRun(str(helpers.write_watched_run(tmp_path)), 36.0)
  first = run.state()
  assert (first['since'], first['total']) == (0, 30)
  assert len(first['series']['policy/entropy']) == 30
  assert first['series']['eval/pass@1'].count(None) == 27
  assert first['files'][0] == 'completions/step_000000'
  assert first['phases'] == {'rollout': 60.0, 'update': 30.0, '': 10.0}
  # Two devices at 36 an hour.
  assert first['cost'] == pytest.approx(
    {'rollout': 1.2, 'update': 0.6, '': 0.2}
  )
  assert first['progress']['left_s'] == 30.0
  assert first['progress']['state'] == 'running'
  known = {name: first[name] for name in ('version', 'listing')}
  second = run.state(since=30, **known)
  assert second['series'] == {'step': []} and second['files'] is None
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "policy/kl": 0.1}\n{"step": 31, "poli')
    file.flush()
    third = run.state(since=30, **known)
    assert third['series'] == {'step': [30], 'policy/kl': [0.1]}
    file.write('cy/kl": 0.2}\n')
  fourth = run.state(since=31, **known)
  assert fourth['series'] == {'step': [31], 'policy/kl': [0.2]}


def test_a_run_that_is_resumed_is_read_from_its_start(tmp_path):
  run = live_run.LiveRun(str(helpers.write_watched_run(tmp_path)))
  first = run.state()
  # As MetricsWriter does: lines of later steps are gone, others as they were.
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines(True)
  files.write_whole(tmp_path / 'metrics.jsonl', ''.join(lines[:20]))
  second = run.state(first['version'], 30, first['listing'])
  assert (second['since'], second['total']) == (0, 20)
  assert second['version'] != first['version']
  # And in place, as long as before: its last bytes tell.
  changed = ''.join(lines[:20]).replace('900.0', '800.0')
  (tmp_path / 'metrics.jsonl').write_text(changed + lines[20])
  third = run.state(second['version'], 20, first['listing'])
  assert set(third['series']['time/tokens_per_s'][:20]) == {800.0}


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0}\n' * 1000)
  tail = live_run.MetricsTail(str(path))
  tail.read()
  parsed = []
  loads = json.loads
  monkeypatch.setattr(
    live_run.json, 'loads', lambda text: parsed.append(text) or loads(text)
  )
  tail.read()
  assert parsed == []
  with open(path, 'a') as file:
    file.write('{"step": 1}\nnonsense\n[2]\n{"no": "step"}\n')
  tail.read()
  assert len(parsed) == 4 and len(tail.rows) == 1001
  assert tail.skipped == 3


def test_a_folder_without_files_is_a_run_that_has_not_begun(tmp_path):
  state = live_run.LiveRun(str(tmp_path)).state()
  assert state['total'] == 0 and state['files'] == []
  assert state['progress']['state'] == 'silent'


def test_a_file_that_is_half_written_is_no_error(tmp_path):
  helpers.write_watched_run(tmp_path)
  (tmp_path / 'run.json').write_text('{"stage"')
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "reward/mean": 1' + 400 * '0' + '}\n')
  (tmp_path / 'evaluations' / 'after.json').write_text('[1]')
  state = live_run.LiveRun(str(tmp_path)).state()
  assert state['info']['stage'] is None
  assert state['evaluations']['after'] == {}
  assert state['series']['step'][-1] == 30
  assert state['series']['reward/mean'][-1] is None


def test_the_time_of_a_rollout_counts_once():
  rows = [{'time/rollout_s': 8.0, 'time/update_s': 1.0}] * 4
  config = {'steps_per_rollout': 2, 'epochs_per_rollout': 2}
  assert recorded.phases(rows, config, 20.0) == {
    **{'rollout': 8.0, 'update': 4.0, '': 8.0}
  }
  assert recorded.phases([], {}, None) == {'': 0.0}


def test_alerts_are_those_that_a_run_wrote_down():
  rows = []
  for step in range(60):
    wrong = 3 < step < 8 or step > 40
    rows.append({'step': step, 'completion/truncated': 1.0 if wrong else 0.0})
    found = alerts.check(rows, alerts.Thresholds())
    if found:
      rows[-1]['alerts'] = [alert.name for alert in found]
  checked = {}
  replayed = history.of_run(rows, {})
  assert len(replayed) > 1
  assert history.of_record(rows, {}, checked) == replayed
  assert set(checked) == {4, 41}
  # With other thresholds the names stay, and the sentence says so.
  quiet = [dict(row) for row in rows[:4]] + [{'step': 4, 'alerts': ['kl']}]
  ((alert, last),) = history.of_record(quiet, {})
  assert (alert.name, last) == ('kl', 4) and 'thresholds' in alert.sentence


@pytest.mark.parametrize(
  'host', ['evil.example', 'evil.example:80', '10.0.0.1']
)
def test_without_a_token_only_local_names_are_answered(port, host):
  # A site whose name leads to 127.0.0.1 could else read what is here.
  assert request(port, '/api/runs/0/state', Host=host)[0].status == 403
  assert request(port, '/', Host='localhost:1')[0].status == 200
  assert request(port, '/', Host='[::1]:1')[0].status == 200


def test_with_a_token_nothing_is_answered_without_it(guarded):
  for path in ('/', '/static/page.js', '/api/runs/0/state'):
    answer, body = request(guarded, path)
    assert answer.status == 401 and b'token' in body
    assert request(guarded, f'{path}?token=wrong')[0].status == 401
    cookie = f'rlzero_token_{guarded}=wrong'
    assert request(guarded, path, Cookie=cookie)[0].status == 401
    bearer = f'Bearer {TOKEN[:-1]}'
    assert request(guarded, path, Authorization=bearer)[0].status == 401


def test_the_address_with_the_token_leads_to_the_page(guarded):
  answer, _ = request(
    guarded, f'/api/overview?token={TOKEN}', Host='far.example'
  )
  assert (answer.status, answer.headers['Location']) == (303, '/')
  cookie = answer.headers['Set-Cookie']
  assert 'HttpOnly' in cookie and 'SameSite=lax' in cookie
  for headers in (
    {'Cookie': cookie.split(';')[0]},
    {'Authorization': f'Bearer {TOKEN}'},
  ):
    assert request(guarded, '/api/overview', **headers)[0].status == 200


def test_tokens_are_compared_in_constant_time(guarded, monkeypatch):
  seen = []
  monkeypatch.setattr(
    live_page.hmac, 'compare_digest', lambda *pair: seen.append(pair) or False
  )
  request(guarded, f'/?token={TOKEN}', Authorization=f'Bearer {TOKEN}')
  assert len(seen) == 3 and all(TOKEN.encode() in pair for pair in seen)


def test_a_token_is_made_for_a_host_that_others_reach():
  assert live_page.make_token('localhost', '') == ''
  assert live_page.make_token('127.0.0.1', '') == ''
  assert live_page.make_token('::1', TOKEN) == TOKEN
  for host in ('0.0.0.0', '::', 'box', '192.168.0.2', 'localhost.example'):
    made = live_page.make_token(host, ''), live_page.make_token(host, '')
    assert len(made[0]) >= 24 and made[0] != made[1]


@pytest.mark.parametrize(
  'flags, sentence',
  [
    (['--workdir=absent'], "The workdir 'absent' does not exist"),
    (['--workdir=.', '--compare=gone'], "The workdir 'gone' does not exist"),
    (['--workdir=.', '--token=short'], 'at least 16 ASCII characters'),
    (['--workdir=.', '--port=65536'], 'report.Config.port is 65536'),
    (['--workdir=.', '--price=-1'], 'report.Config.price is -1'),
    (['--workdir=.', '--host=203.0.113.7'], 'Nothing can listen at'),
  ],
)
def test_bad_input_is_a_sentence(capsys, flags, sentence):
  with pytest.raises(SystemExit) as stopped:
    config.main(report, [*flags, '--serve'])
  assert stopped.value.code == 2
  said = capsys.readouterr().err
  assert sentence in said and said.count('\n') == 1


def test_a_port_in_use_is_a_sentence(capsys):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(SystemExit):
      flags = ['--workdir=.', '--host=127.0.0.1', f'--port={port}', '--serve']
      config.main(report, flags)
  assert f'Nothing can listen at port {port}' in capsys.readouterr().err


@pytest.mark.long
def test_a_program_serves_until_it_is_interrupted(folder):
  before = sorted(os.listdir(folder))
  # What starts the tests may have told them to ignore SIGINT, as a shell does
  # for jobs in its background; a user's terminal does not.
  program = (
    'import runpy, signal; '
    'signal.signal(signal.SIGINT, signal.default_int_handler); '
    'runpy.run_module("rlzero.report", run_name="__main__", alter_sys=True)'
  )
  command = ['-c', program, f'--workdir={folder}', '--serve']
  with subprocess.Popen(
    [sys.executable, *command, '--port=0', '--host=127.0.0.1'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    said = process.stdout.readline()
    port = int(re.search(r'http://127.0.0.1:(\d+)/ ', said)[1])
    assert request(port, '/')[0].status == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
  assert process.returncode == 130 and errors == ''
  assert sorted(os.listdir(folder)) == before


def test_charts_and_key_figures_are_of_metrics_that_are_logged():
  names = [n for c in charts.CHARTS + charts.LIVE_CHARTS for n in c.names]
  page = live_page.STATIC['page.js'].decode()
  figures = page.partition('KEY_FIGURES = [')[2].partition('];')[0]
  names += re.findall(r"\['([^']+)'", figures)
  assert len(names) > 25
  for name in names:
    assert metric_names.find(name.replace('{k}', '4')), name
