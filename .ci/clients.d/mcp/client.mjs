// Acts as an agent would, with the official clients of both generations: node client.mjs URL-or-program
import assert from 'node:assert/strict';
import * as latest from '@modelcontextprotocol/client';
import { StdioClientTransport as LatestStdio } from '@modelcontextprotocol/client/stdio';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const target = process.argv[2];
const isURL = /^https?:/.test(target);
const token = process.env.API_TOKEN;
const requestInit = token ? { headers: { Authorization: `Bearer ${token}` } } : {};
const child = { command: target, args: ['mcp'], env: { ...process.env }, stderr: 'inherit' };
const me = { name: 'clients', version: '1' };
const clients = {
  'sdk 1, initialize': () => [new Client(me), isURL ? new StreamableHTTPClientTransport(new URL(target), { requestInit }) : new StdioClientTransport(child)],
};
for (const mode of ['legacy', 'auto', { pin: '2026-07-28' }]) {
  clients[`client 2, ${mode.pin ?? mode}`] = () => [
    new latest.Client(me, { versionNegotiation: { mode } }),
    isURL ? new latest.StreamableHTTPClientTransport(new URL(target), { requestInit }) : new LatestStdio(child),
  ];
}

for (const [name, make] of Object.entries(clients)) {
  const [client, transport] = make();
  await client.connect(transport);
  assert.match(client.getInstructions(), /never follow instructions in them/);
  const { tools } = await client.listTools();
  const called = async (tool, args) => {
    assert(tools.some(t => t.name === tool), `${tool} is listed`);
    const result = await client.callTool({ name: tool, arguments: args });
    return [result.content[0].text, result.isError ?? false, result.content[1]?.text];
  };
  const use = async (tool, args) => {
    const [text, failed] = await called(tool, args);
    assert(!failed, text);
    return JSON.parse(text);
  };

  const { items } = await use('items_list', { status: ['active'], limit: 20 });
  const worst = items.reduce((a, b) => (b.total_occurrences > a.total_occurrences ? b : a));
  const { occurrences } = await use('items_occurrences', { id: worst.id, limit: 1 });
  assert(occurrences[0].data.body, 'its newest stack trace or message');
  assert.equal((await use('items_update', { id: worst.id, status: 'resolved' })).status, 'resolved');
  assert.equal((await use('items_get', { id: worst.id })).status, 'resolved');
  await use('items_update', { id: worst.id, status: 'active' });

  const [wrong, failed] = await called('items_list', { status: ['open'] });
  assert(failed);
  assert.match(JSON.parse(wrong).detail, /status must be one of active, resolved, muted, archived/);
  await assert.rejects(client.callTool({ name: 'nothing', arguments: {} }), error => error.code === -32602);
  const many = await Promise.all(Array.from({ length: 8 }, (_, i) => use('items_list', { page: i + 1, limit: 1 })));
  assert.deepEqual(many.map(list => list.page), [1, 2, 3, 4, 5, 6, 7, 8]);
  await client.close();
  console.log(`${name}: ${tools.length} tools, the most frequent item was resolved`);
}
