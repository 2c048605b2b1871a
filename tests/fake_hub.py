"""The Hub's HTTP interface on this machine, as far as huggingface_hub asks for it: repositories of
files, fetched and uploaded. With `address` in HF_ENDPOINT programs take it for the Hub.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading


class Hub(http.server.ThreadingHTTPServer):
    """Repositories: {'models/user/name': {revision: {path: bytes}}}; `asked` lists what came."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.repositories = {}
        self.asked = []
        self.address = f'http://127.0.0.1:{self.server_port}'

    def add(self, repository, folder, revision='main', others=()):
        """Put the files of a folder, not those below it, into a repository, and others by name."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repositories.setdefault(repository, {})[revision] = files | dict(others)


def sha_of(files):
    """A name for these files, from their names and sizes: hashing 100 MB would take too long."""
    return hashlib.sha1(repr(sorted((k, len(v)) for k, v in files.items())).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        """Say nothing."""

    def answer(self, content, code=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header('Content-Length', str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def missing(self, what):
        self.answer({'error': what}, 404, X_Error_Code=what)

    def files(self, repository, revision):
        """Files of a revision, by its name or sha; None, and an answer, where there are none."""
        revisions = self.server.repositories.get(repository)
        if revisions is None:
            return self.missing('RepoNotFound')
        for name, files in revisions.items():
            if revision in (name, sha_of(files)):
                return files
        return self.missing('RevisionNotFound')

    def do_GET(self):
        self.server.asked.append(f'{self.command} {self.path}')
        path = self.path.partition('?')[0]
        about = re.fullmatch(r'/api/(\w+/[^/]+/[^/]+)/(revision|tree)/([^/]+)/?', path)
        one = re.fullmatch(r'/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path)
        if about:
            files = self.files(about[1], about[3])
            if files is not None:
                names = [{'rfilename': name} for name in files]
                tree = [
                    {
                        'type': 'file',
                        'path': name,
                        'size': len(content),
                        'oid': sha_of({name: content}),
                    }
                    for name, content in files.items()
                ]
                whole = {'id': about[1].partition('/')[2], 'sha': sha_of(files), 'siblings': names}
                self.answer(whole if about[2] == 'revision' else tree)
        elif one:
            repository = (one[1] or 'models/') + one[2]
            files = self.files(repository, one[3])
            if files is None:
                return None
            if one[4] not in files:
                return self.missing('EntryNotFound')
            content = files[one[4]]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(content, ETag=tag, X_Repo_Commit=sha_of(files))
        else:
            self.missing('RepoNotFound')

    do_HEAD = do_GET

    def do_POST(self):
        self.server.asked.append(f'{self.command} {self.path}')
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        if self.path == '/api/repos/create':
            asked = json.loads(body)
            kind = asked.get('type', 'model') + 's'
            repository = f'{asked.get("organization") or "user"}/{asked["name"]}'
            self.server.repositories.setdefault(f'{kind}/{repository}', {'main': {}})
            return self.answer({'url': f'{self.server.address}/{repository}', 'id': repository})
        found = re.fullmatch(r'/api/(\w+/[^/]+/[^/]+)/(preupload|commit)/main.*', self.path)
        if not found:
            return self.answer({'message': 'ok'})
        if found[2] == 'preupload':
            modes = [
                {'path': file['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                for file in json.loads(body)['files']
            ]
            return self.answer({'files': modes})
        files = self.server.repositories[found[1]]['main']
        for line in map(json.loads, body.splitlines()):
            if line['key'] == 'file':
                files[line['value']['path']] = base64.b64decode(line['value']['content'])
        url = f'{self.server.address}/{found[1]}/commit/{sha_of(files)}'
        self.answer(
            {'success': True, 'commitUrl': url, 'commitOid': sha_of(files), 'hookOutput': ''}
        )


@contextlib.contextmanager
def running():
    """A Hub that answers until the end of the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
