// The client that oapi-codegen generates lists items, reads one, sends a payload and reads an error.
package oapi

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"testing"

	"clients/oapi/api"
)

func authorize(_ context.Context, r *http.Request) error {
	r.Header.Set("Authorization", "Bearer "+os.Getenv("API_TOKEN"))
	return nil
}

func TestClient(t *testing.T) {
	client, err := api.NewClientWithResponses(os.Getenv("APP_URL"), api.WithRequestEditorFn(authorize))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()

	limit := int64(3)
	page, err := client.ItemsListWithResponse(ctx, &api.ItemsListParams{
		Level: &[]api.ItemsListParamsLevel{api.ItemsListParamsLevelCritical, api.ItemsListParamsLevelError},
		Limit: &limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	if page.JSON200 == nil || len(page.JSON200.Items) != 3 || page.Headers200.Link == nil {
		t.Fatalf("the page is %s", page.Body)
	}
	id := page.JSON200.Items[0].Id

	item, err := client.ItemsGetWithResponse(ctx, strconv.FormatInt(id, 10), nil)
	if err != nil {
		t.Fatal(err)
	}
	if item.JSON200 == nil || item.JSON200.Id != id || item.JSON200.AdditionalProperties["title"] == "" {
		t.Fatalf("item %d is %s", id, item.Body)
	}
	item, err = client.ItemsGetWithResponse(ctx, strconv.FormatInt(id, 10),
		&api.ItemsGetParams{IfNoneMatch: item.Headers200.ETag})
	if err != nil || item.StatusCode() != http.StatusNotModified {
		t.Fatalf("item %d, which is known, is %s, %v", id, item.Body, err)
	}

	create := func(data map[string]any) *api.ItemsCreateResponse {
		t.Helper()
		var body api.ItemsCreate
		if err := body.FromItemsCreateData(api.ItemsCreateData{Data: data}); err != nil {
			t.Fatal(err)
		}
		created, err := client.ItemsCreateWithResponse(ctx, body)
		if err != nil {
			t.Fatal(err)
		}
		return created
	}
	sent := create(map[string]any{"environment": "production",
		"body": map[string]any{"message": map[string]any{"body": "sent by oapi-codegen"}}})
	if sent.JSON201 == nil || sent.JSON201.State != api.CreatedStateDelivered {
		t.Fatalf("the payload became %s", sent.Body)
	}

	state := api.ReportsListParamsStateDelivered
	reports, err := client.ReportsListWithResponse(ctx, &api.ReportsListParams{State: &state})
	if err != nil {
		t.Fatal(err)
	}
	if report := reports.JSON200.Reports[0]; report.LastSeen.IsZero() || report.Uuid == nil ||
		report.Data["body"] == nil {
		t.Fatalf("the report is %#v", report)
	}

	refused := create(map[string]any{"environment": "production"}).ApplicationproblemJSONDefault
	if refused == nil || refused.Status != 400 || refused.Type != "/problems/usage" {
		t.Fatalf("a payload without a body: %#v", refused)
	}
	t.Log(refused.Detail)
}
