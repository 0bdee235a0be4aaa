// The client of openapi-typescript and openapi-fetch lists items, reads one, sends a payload and reads an error.
// Compiling it is as much of a test as running it.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.d.ts";

const client = createClient<paths>({
  baseUrl: process.env.APP_URL,
  headers: { Authorization: `Bearer ${process.env.API_TOKEN}` },
});

const page = await client.GET("/items", { params: { query: { level: ["critical", "error"], limit: 3 } } });
assert.ok(page.data, page.error?.detail);
const items: components["schemas"]["Item"][] = page.data.items;
const total: number | null = page.data.total_count;
assert.equal(items.length, 3);
assert.ok(total);
assert.ok(page.response.headers.get("Link"));

const path = { id: String(items[0].id) };
const item = await client.GET("/items/{id}", { params: { path } });
assert.ok(item.data, item.error?.detail);
assert.equal(item.data.id, items[0].id);
assert.equal(typeof item.data.title, "string");

const header = { "If-None-Match": item.response.headers.get("ETag") ?? "" };
const known = await client.GET("/items/{id}", { params: { path, header } });
assert.equal(known.response.status, 304);

const sent = await client.POST("/items", {
  body: { data: { environment: "production", body: { message: { body: "sent by openapi-fetch" } } } },
});
assert.equal(sent.data?.state, "delivered", sent.error?.detail);

const reports = await client.GET("/reports", { params: { query: { state: "delivered" } } });
assert.ok(reports.data, reports.error?.detail);
const report: components["schemas"]["Report"] = reports.data.reports[0];
assert.ok(report.uuid && report.data.body && Date.parse(report.last_seen));

// @ts-expect-error: a payload or a message is required
await client.POST("/items", { body: { level: "error" } });

const refused = await client.POST("/items", { body: { data: { environment: "production" } } });
assert.equal(refused.error?.status, 400);
assert.equal(refused.error.type, "/problems/usage");
console.log(refused.error.detail);
