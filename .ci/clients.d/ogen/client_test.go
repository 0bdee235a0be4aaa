// The client that ogen generates lists items, reads one, sends a payload and reads an error.
package ogen

import (
	"context"
	"errors"
	"os"
	"strconv"
	"testing"

	"github.com/go-faster/jx"

	"clients/ogen/api"
)

type token string

func (t token) Token(context.Context, api.OperationName) (api.Token, error) {
	return api.Token{Token: string(t)}, nil
}

func TestClient(t *testing.T) {
	client, err := api.NewClient(os.Getenv("APP_URL"), token(os.Getenv("API_TOKEN")))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()

	page, err := client.ItemsList(ctx, api.ItemsListParams{
		Level: []api.ItemsListLevelItem{api.ItemsListLevelItemCritical, api.ItemsListLevelItemError},
		Limit: api.NewOptInt64(3),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Response.Items) != 3 || !page.Link.Set {
		t.Fatalf("the page holds %d items, its link is %q", len(page.Response.Items), page.Link.Value)
	}
	id := page.Response.Items[0].ID

	got, err := client.ItemsGet(ctx, api.ItemsGetParams{ID: strconv.FormatInt(id, 10)})
	if err != nil {
		t.Fatal(err)
	}
	item, ok := got.(*api.ItemHeaders)
	if !ok || item.Response.ID != id || len(item.Response.AdditionalProps["title"]) == 0 {
		t.Fatalf("item %d is %#v", id, got)
	}
	got, err = client.ItemsGet(ctx, api.ItemsGetParams{ID: strconv.FormatInt(id, 10), IfNoneMatch: item.ETag})
	if _, ok := got.(*api.ItemsGetNotModified); !ok || err != nil {
		t.Fatalf("item %d, which is known, is %#v, %v", id, got, err)
	}

	sent, err := client.ItemsCreate(ctx,
		api.NewItemsCreateDataItemsCreate(api.ItemsCreateData{Data: api.ItemsCreateDataData{
			"environment": jx.Raw(`"production"`), "body": jx.Raw(`{"message":{"body":"sent by ogen"}}`),
		}}))
	if err != nil {
		t.Fatal(err)
	}
	if created, ok := sent.(*api.ItemsCreateCreated); !ok || created.Response.State != api.CreatedStateDelivered {
		t.Fatalf("the payload became %#v", sent)
	}

	reports, err := client.ReportsList(ctx,
		api.ReportsListParams{State: api.NewOptReportsListState(api.ReportsListStateDelivered)})
	if err != nil {
		t.Fatal(err)
	}
	if report := reports.Response.Reports[0]; report.LastSeen.IsZero() || report.UUID.Null ||
		len(report.Data["body"]) == 0 {
		t.Fatalf("the report is %#v", report)
	}

	_, err = client.ItemsCreate(ctx, api.NewItemsCreateDataItemsCreate(api.ItemsCreateData{Data: api.ItemsCreateDataData{
		"environment": jx.Raw(`"production"`),
	}}))
	var failure *api.FailureStatusCodeWithHeaders
	if !errors.As(err, &failure) || failure.StatusCode != 400 || failure.Response.Type != "/problems/usage" {
		t.Fatalf("a payload without a body: %v", err)
	}
	t.Log(failure.Response.Detail)
}
