// Measures the compressed size of the pages, and compares their response times with those of the same data as JSON.
import assert from 'node:assert/strict';
import http from 'node:http';
import { gunzipSync } from 'node:zlib';
import { failed, origin } from './service.mjs';

const item = await failed();

// get measures the time of a response that is read to its end.
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const get = (path, accept) => new Promise((resolve, reject) => {
  const began = performance.now();
  http.get(origin + path, {
    agent, headers: { Accept: accept, 'Accept-Encoding': 'gzip', Authorization: `Bearer ${process.env.API_TOKEN ?? ''}` },
  }, response => {
    const parts = [];
    response.on('data', part => parts.push(part));
    response.on('end', () => {
      assert.equal(response.statusCode, 200, path);
      resolve({ took: performance.now() - began, body: Buffer.concat(parts) });
    });
  }).on('error', reject);
});
const median = numbers => numbers.sort((a, b) => a - b)[numbers.length >> 1];

for (const path of ['/reports?limit=20', '/items?limit=20', `/items/${item}`, '/reports/summary', '/occurrences']) {
  const html = [], json = [];
  let page;
  for (let n = 0; n < 50; n++) {
    json.push((await get(path, 'application/json')).took);
    page = await get(path, 'text/html');
    html.push(page.took);
  }
  const style = gunzipSync(page.body).toString().match(/rel="stylesheet" href="[./]*([^"]+)"/)[1];
  const weight = page.body.length + (await get(`/${style}`, 'text/css')).body.length;
  const ratio = median(html) / median(json);
  console.log(`${path}: ${(weight / 1000).toFixed(1)} kB with its style sheet, ${median(html).toFixed(1)} ms, ${ratio.toFixed(2)} times its JSON`);
  if (path.startsWith('/reports?')) {
    assert(weight <= 30_000, 'at most 30 kB');
    assert(median(html) <= 50, 'at most 50 ms');
  }
}
agent.destroy();
