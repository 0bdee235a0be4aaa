// Takes the pictures of README.md: node pictures.mjs http://host DIRECTORY, with DATABASE_URL. The reports are backdated,
// as if they had arrived over four weeks.
import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { call, context, end, fail, failed, origin } from './service.mjs';

await fail(5 * 3600);
const item = await failed();
await call('PATCH', `/items/${item}`, { assigned_user_id: 5325 });
await call('PATCH', `/items/${item}`, { status: 'resolved', resolved_in_version: '4.2.1' });
await call('PATCH', `/items/${item}`, { status: 'active', level: 'critical' });
const { items } = await call('GET', '/items?status=active&limit=100');
for (const { id } of items.slice(1, 50)) await call('PATCH', `/items/${id}`, { status: id % 4 ? 'resolved' : 'muted' });
execFileSync('psql', ['-qX', '-v', 'ON_ERROR_STOP=1', process.env.DATABASE_URL], { input: `
  WITH states AS (
    SELECT id, row_number() OVER (PARTITION BY item_id ORDER BY id DESC) AS n,
      CASE WHEN item_id = ${item} THEN 0.1 ELSE abs(hashint8(item_id) % 1000) / 36.0 END AS age
    FROM reports WHERE item_id IS NOT NULL
  )
  UPDATE reports AS r SET first_seen = now() - interval '1 day' * (28 - (28 - s.age) / s.n ^ 0.3)
  FROM states AS s WHERE s.id = r.id` });

const session = await context({ colorScheme: 'light' });
const page = await session.newPage();
for (const [name, path, height] of [['summary', '/reports/summary', 780], ['item', `/items/${item}`, 1030]]) {
  await page.setViewportSize({ width: 1200, height });
  const file = `${process.argv[3]}/${name}.png`;
  await page.goto(origin + path);
  await page.screenshot({ path: file });
  console.log(`${file}: ${(statSync(file).size / 1000).toFixed(0)} kB`);
}
await end();
